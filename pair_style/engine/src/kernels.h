// The engine's loops over atoms and edges, as kernels for CPUs and GPUs.
//
// For the CPU the C++ compiler includes this file, and a kernel is called for one index after the other. For a GPU the
// same text is compiled when a model is loaded (gpu.cpp), and a warp of LANES threads processes each index. So the file
// includes almost nothing, and its first block has all that differs between the devices.
//
// Sums to which many threads add are fixed-point numbers: sums of integers do not depend on the order, so results do
// not depend on threads, warps or pieces.
#pragma once

#ifdef __CUDACC_RTC__

#define NEQUIP_MD_DEVICE __device__ inline
#define NEQUIP_MD_KERNEL(name, Arguments)                                                              \
    extern "C" __global__ void name##_kernel(const Arguments arguments, long long count)               \
    {                                                                                                  \
        const long long index = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / nequip_md::LANES; \
        if (index < count) nequip_md::name(arguments, index);                                          \
    }

namespace nequip_md {

typedef long long Int64;
constexpr int LANES = 32;
NEQUIP_MD_DEVICE int lane() { return threadIdx.x % LANES; }
NEQUIP_MD_DEVICE unsigned ballot(bool yes) { return __ballot_sync(~0u, yes); }
NEQUIP_MD_DEVICE int count_bits(unsigned bits) { return __popc(bits); }
NEQUIP_MD_DEVICE Int64 over_lanes(Int64 value)
{
    for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}
NEQUIP_MD_DEVICE double over_lanes(double value)
{
    for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}
NEQUIP_MD_DEVICE void add_to(Int64 *sum, Int64 value)
{
    atomicAdd((unsigned long long *)sum, (unsigned long long)value);
}
NEQUIP_MD_DEVICE void add_to(double *sum, double value) { atomicAdd(sum, value); }
NEQUIP_MD_DEVICE Int64 rounded(double value) { return __double2ll_rn(value); }

}  // namespace nequip_md

#else

#include <atomic>
#include <cmath>

#define NEQUIP_MD_DEVICE inline
#define NEQUIP_MD_KERNEL(name, Arguments)

namespace nequip_md {

typedef long long Int64;
constexpr int LANES = 1;
inline int lane() { return 0; }
inline unsigned ballot(bool yes) { return yes; }
inline int count_bits(unsigned bits) { return static_cast<int>(bits); }
inline Int64 over_lanes(Int64 value) { return value; }
inline double over_lanes(double value) { return value; }
template <typename Number>
void add_to(Number *sum, Number value)
{
    std::atomic_ref<Number>(*sum).fetch_add(value, std::memory_order_relaxed);
}
inline Int64 rounded(double value) { return std::llrint(value); }

}  // namespace nequip_md

#endif

namespace nequip_md {

// ---- the caller's atoms, and pairs of them that may be edges ----

struct Atoms {
    const double *positions;   // [positions][3], angstrom: of the atoms, then of their periodic images
    const Int64 *type;         // [positions], of the model; -1: not in the model
    const int *centre_atom;    // [centres]
    const Int64 *num_centres;  // [1]
    const double *cutoff;      // [types][types], angstrom, ordered pair
    const double *shortest;    // [types][types], angstrom^2: squared distances below which pairs are counted; or null
    Int64 num_types;
};

NEQUIP_MD_DEVICE double squared_distance(const Atoms &atoms, int i, int j)
{
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
        const double d = atoms.positions[3 * (Int64)j + k] - atoms.positions[3 * (Int64)i + k];
        sum += d * d;
    }
    return sum;
}

NEQUIP_MD_DEVICE bool within_cutoff(const Atoms &atoms, int i, int j, double skin)
{
    const Int64 from = atoms.type[i], to = atoms.type[j];
    if (from < 0 || to < 0) return false;
    const double reach = atoms.cutoff[from * atoms.num_types + to] + skin;
    return squared_distance(atoms, i, j) < reach * reach;
}

// ---- periodic images ----

struct ImageArguments {
    const double *given;  // [atoms][3], angstrom, positions of the caller's atoms
    const int *atom;      // [positions], the atom that each position belongs to
    const int *shift;     // [positions][3], lattice vectors from the atom to the position
    double lattice[9];    // rows are the vectors, angstrom
    Int64 num_positions;
    double *positions;  // [positions][3]
};

// Computes the positions of images. index: block of LANES positions
NEQUIP_MD_DEVICE void place_images(const ImageArguments &a, Int64 index)
{
    const Int64 image = index * LANES + lane();
    if (image >= a.num_positions) return;
    const int *const shift = a.shift + 3 * image;
    for (int k = 0; k < 3; ++k)
        a.positions[3 * image + k] = a.given[3 * (Int64)a.atom[image] + k] + shift[0] * a.lattice[k] +
                                     shift[1] * a.lattice[3 + k] + shift[2] * a.lattice[6 + k];
}

// ---- candidates from cells ----

struct CellArguments {
    Atoms atoms;
    double origin[3], width[3];  // of the grid and of a cell, angstrom
    Int64 cells[3];              // along x (running fastest), y and z
    Int64 num_atoms;             // with images
    double skin;
    Int64 *cell;                 // [atoms], number of the cell; the number of cells for atoms outside the model
    const Int64 *atom_of_rank;   // [atoms], sorted by cell; null: there are no cells, all atoms are searched
    const Int64 *first_of_cell;  // [cells + 1], rank of a cell's first atom
    Int64 *list_offset;          // [centres + 1]: counts from the second entry on, then their sums
    int *list;                   // the candidates of each centre, once they have been counted
};

NEQUIP_MD_DEVICE Int64 cell_along(const CellArguments &a, int axis, int atom)
{
    const Int64 cell = (Int64)((a.atoms.positions[3 * (Int64)atom + axis] - a.origin[axis]) / a.width[axis]);
    return cell < 0 ? 0 : cell >= a.cells[axis] ? a.cells[axis] - 1 : cell;
}

// Computes the cell of each atom. index: block of LANES atoms
NEQUIP_MD_DEVICE void find_cell(const CellArguments &a, Int64 index)
{
    const Int64 atom = index * LANES + lane();
    if (atom >= a.num_atoms) return;
    const Int64 number =
        (cell_along(a, 2, atom) * a.cells[1] + cell_along(a, 1, atom)) * a.cells[0] + cell_along(a, 0, atom);
    a.cell[atom] = a.atoms.type[atom] < 0 ? a.cells[0] * a.cells[1] * a.cells[2] : number;
}

// Appends the candidates of a centre among the atoms of ranks ``begin`` to ``end - 1`` to the ``found`` previous ones
// in
// ``list``, or only counts them if ``list`` is null.
NEQUIP_MD_DEVICE void search_ranks(const CellArguments &a, int atom, Int64 begin, Int64 end, Int64 &found, int *list)
{
    for (Int64 rank = begin; rank < end; rank += LANES) {
        const bool there = rank + lane() < end;
        const int other = !there ? atom : a.atom_of_rank ? (int)a.atom_of_rank[rank + lane()] : (int)(rank + lane());
        const bool near = there && other != atom && within_cutoff(a.atoms, atom, other, a.skin);
        const unsigned all = ballot(near);
        if (list && near) list[found + count_bits(all & ((1u << lane()) - 1))] = other;
        found += count_bits(all);
    }
}

// Finds the candidates of a centre. They are in its own cell and the adjacent ones, since a cell is at least as wide as
// the largest cutoff with the skin. Writes them to ``list`` unless it is null; returns their number.
NEQUIP_MD_DEVICE Int64 search_cells(const CellArguments &a, Int64 centre, int *list)
{
    const int atom = a.atoms.centre_atom[centre];
    Int64 at[3], found = 0;
    if (!a.atom_of_rank) {
        search_ranks(a, atom, 0, a.num_atoms, found, list);
        return found;
    }
    for (int axis = 0; axis < 3; ++axis) at[axis] = cell_along(a, axis, atom);
    const Int64 left = at[0] > 0 ? at[0] - 1 : 0, right = at[0] + 1 < a.cells[0] ? at[0] + 1 : at[0];
    for (Int64 z = at[2] - 1; z <= at[2] + 1; ++z)
        for (Int64 y = at[1] - 1; y <= at[1] + 1; ++y) {
            if (z < 0 || z >= a.cells[2] || y < 0 || y >= a.cells[1]) continue;
            const Int64 row = (z * a.cells[1] + y) * a.cells[0];
            search_ranks(a, atom, a.first_of_cell[row + left], a.first_of_cell[row + right + 1], found, list);
        }
    return found;
}

// index: centre
NEQUIP_MD_DEVICE void count_candidates(const CellArguments &a, Int64 index)
{
    const Int64 found = search_cells(a, index, nullptr);
    if (lane() == 0) a.list_offset[index + 1] = found;
}

NEQUIP_MD_DEVICE void write_candidates(const CellArguments &a, Int64 index)
{
    search_cells(a, index, a.list + a.list_offset[index]);
}

// ---- edges ----

struct EdgeArguments {
    Atoms atoms;
    const Int64 *list_offset;   // [centres + 1], offset of each centre's candidates
    const int *list;            // the candidates
    const int *atom;            // [positions], the atom that each is an image of; null: every position is an atom
    const Int64 *node_of_atom;  // for models with message passing; null: every atom is a ghost, which has only a type
    Int64 *edge_offset;         // [centres + 1]: counts from the second entry on, then their sums

    // a graph, which consists of the existing ones of the centres `first` to `first + count - 1`
    Int64 first, count;
    Int64 num_nodes;        // including phantoms, which are the nodes after the last existing centre
    Int64 num_edges;        // including padding edges, which are distributed among the phantoms
    double padding;         // angstrom, length of a padding edge
    double *vectors;        // [num_edges][3]
    Int64 *centre_node;     // [num_edges]
    Int64 *neighbour_node;  // [num_edges]
    int *neighbour_atom;    // [num_edges], not set for padding edges
    Int64 *row_ptr;         // [num_nodes + 1]
};

NEQUIP_MD_DEVICE bool is_edge(const EdgeArguments &a, int centre, Int64 k, Int64 end)
{
    return k < end && within_cutoff(a.atoms, centre, a.list[k], 0);
}

// index: centre
NEQUIP_MD_DEVICE void count_edges(const EdgeArguments &a, Int64 index)
{
    Int64 found = 0;
    if (index < *a.atoms.num_centres) {
        const int centre = a.atoms.centre_atom[index];
        const Int64 end = a.list_offset[index + 1];
        for (Int64 k = a.list_offset[index]; k < end; k += LANES)
            found += count_bits(ballot(is_edge(a, centre, k + lane(), end)));
    }
    if (lane() == 0) a.edge_offset[index + 1] = found;
    if (lane() == 0 && index == 0) a.edge_offset[0] = 0;
}

NEQUIP_MD_DEVICE void write_edge(const EdgeArguments &a, Int64 edge, Int64 node, int centre, int neighbour)
{
    if (edge >= a.num_edges) return;  // the caller detects from edge_offset that there are too many
    for (int k = 0; k < 3; ++k)
        a.vectors[3 * edge + k] =
            a.atoms.positions[3 * (Int64)neighbour + k] - a.atoms.positions[3 * (Int64)centre + k];
    a.centre_node[edge] = node;
    const int atom = a.atom ? a.atom[neighbour] : neighbour;
    a.neighbour_node[edge] = a.node_of_atom ? a.node_of_atom[atom] : a.num_nodes + atom;
    a.neighbour_atom[edge] = atom;
}

// Writes padding edges, from a node to itself with a length at which every model and its derivatives are zero.
NEQUIP_MD_DEVICE void write_padding(const EdgeArguments &a, Int64 node, Int64 begin, Int64 end)
{
    for (Int64 edge = begin + lane(); edge < end; edge += LANES) {
        a.vectors[3 * edge] = a.padding;
        a.vectors[3 * edge + 1] = a.vectors[3 * edge + 2] = 0;
        a.centre_node[edge] = a.neighbour_node[edge] = node;
    }
}

// index: node
NEQUIP_MD_DEVICE void write_edges(const EdgeArguments &a, Int64 index)
{
    const Int64 left = *a.atoms.num_centres - a.first, real = a.count < left ? a.count : left;
    const Int64 start = a.edge_offset[a.first];
    if (index < real) {
        const int centre = a.atoms.centre_atom[a.first + index];
        const Int64 end = a.list_offset[a.first + index + 1];
        Int64 edge = a.edge_offset[a.first + index] - start;
        if (lane() == 0) a.row_ptr[index] = edge < a.num_edges ? edge : a.num_edges;
        for (Int64 k = a.list_offset[a.first + index]; k < end; k += LANES) {
            const bool yes = is_edge(a, centre, k + lane(), end);
            const unsigned all = ballot(yes);
            if (yes) write_edge(a, edge + count_bits(all & ((1u << lane()) - 1)), index, centre, a.list[k + lane()]);
            edge += count_bits(all);
        }
    } else {
        const Int64 used = a.edge_offset[a.first + real] - start, spare = used < a.num_edges ? a.num_edges - used : 0;
        const Int64 phantoms = a.num_nodes - real, phantom = index - real;
        const Int64 begin = a.num_edges - spare + spare * phantom / phantoms;
        const Int64 end = a.num_edges - spare + spare * (phantom + 1) / phantoms;
        write_padding(a, index, begin, end);
        if (lane() == 0) {
            a.row_ptr[index] = begin;
            if (index + 1 == a.num_nodes) a.row_ptr[a.num_nodes] = a.num_edges;
        }
    }
}

// ---- from the gradients of edges to forces and virials ----

// Fixed-point numbers are multiples of 2^-46 (eV/angstrom, eV). They cannot represent a gradient of more than LARGEST,
// or NaN; edges with such gradients need floating-point sums.
constexpr double UNITS = 70368744177664.0;
constexpr double LARGEST = 1024.0;
constexpr int SUMS = 10;  // sums of a centre: virial xx yy zz xy xz yz, energy, number of edges that exceed LARGEST,
                          // number of all edges, number of edges that are shorter than `shortest`

struct TallyArguments {
    const Int64 *row_ptr;       // [nodes + 1], of the graph
    const Int64 *edge_offset;   // [centres + 1]
    const double *vectors;      // [edges][3]
    const double *gradient;     // [edges][3], derivatives of the total energy by the vectors
    const double *node_energy;  // [nodes]
    const int *neighbour_atom;  // [edges]
    Atoms atoms;
    Int64 first;      // the graph's first node is this centre
    void *forces;     // [atoms][3]
    void *virials;    // [atoms][6], half of each edge to either atom; or null
    void *centroids;  // [atoms][9], each edge to its neighbour; or null
    double *sums;     // [centres][SUMS]
};

template <typename Number>
NEQUIP_MD_DEVICE Number number(double value);
template <>
NEQUIP_MD_DEVICE Int64 number<Int64>(double value)
{
    return rounded(value * UNITS);
}
template <>
NEQUIP_MD_DEVICE double number<double>(double value)
{
    return value;
}

// Virial of one edge, -r (x) g: xx yy zz xy xz yz yx zx zy.
NEQUIP_MD_DEVICE void edge_virial(const double *r, const double *g, double *w)
{
    w[0] = -r[0] * g[0], w[1] = -r[1] * g[1], w[2] = -r[2] * g[2];
    w[3] = -r[0] * g[1], w[4] = -r[0] * g[2], w[5] = -r[1] * g[2];
    w[6] = -r[1] * g[0], w[7] = -r[2] * g[0], w[8] = -r[2] * g[1];
}

// Adds the edges of a node to forces, virials and the sums of its centre. Number is the type of the forces and virials:
// Int64 for fixed-point numbers, or double. Edges that exceed LARGEST are counted and, with skip_large, left out.
template <typename Number>
NEQUIP_MD_DEVICE void tally(const TallyArguments &a, Int64 index, bool skip_large)
{
    const Int64 centre = a.first + index;
    double *const sums = a.sums + SUMS * centre;
    if (centre >= *a.atoms.num_centres) {
        for (int k = lane(); k < SUMS; k += LANES) sums[k] = 0;
        return;
    }
    const int atom = a.atoms.centre_atom[centre];
    const double *const shortest =
        a.atoms.shortest ? a.atoms.shortest + a.atoms.type[atom] * a.atoms.num_types : nullptr;
    Number *const forces = (Number *)a.forces, *const virials = (Number *)a.virials,
                  *const centroids = (Number *)a.centroids;
    Number force[3] = {0, 0, 0}, share[6] = {0, 0, 0, 0, 0, 0};
    double virial[6] = {0, 0, 0, 0, 0, 0}, large = 0, close = 0;
    for (Int64 edge = a.row_ptr[index] + lane(); edge < a.row_ptr[index + 1]; edge += LANES) {
        const double *const r = a.vectors + 3 * edge, *const g = a.gradient + 3 * edge;
        bool small = true;
        for (int k = 0; k < 3; ++k) small = small && g[k] < LARGEST && g[k] > -LARGEST;
        const Int64 other = a.neighbour_atom[edge];
        if (shortest && r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < shortest[a.atoms.type[other]]) close += 1;
        if (!small) large += 1;
        if (!small && skip_large) continue;
        for (int k = 0; k < 3; ++k) {
            const Number component = number<Number>(g[k]);
            force[k] += component;
            add_to(forces + 3 * other + k, (Number)-component);
        }
        double w[9];
        edge_virial(r, g, w);
        for (int k = 0; k < 6; ++k) {
            // symmetrised, since only the total is symmetric, by rotational invariance
            const double symmetric = k < 3 ? w[k] : 0.5 * (w[k] + w[k + 3]);
            virial[k] += symmetric;
            if (!virials) continue;
            const Number half = number<Number>(0.5 * symmetric);
            share[k] += half;
            add_to(virials + 6 * other + k, half);
        }
        if (centroids)
            for (int k = 0; k < 9; ++k) add_to(centroids + 9 * other + k, number<Number>(w[k]));
    }
    for (int k = 0; k < 3; ++k) {
        const Number total = over_lanes(force[k]);
        if (lane() == 0) add_to(forces + 3 * (Int64)atom + k, total);
    }
    for (int k = 0; k < 6 && virials; ++k) {
        const Number total = over_lanes(share[k]);
        if (lane() == 0) add_to(virials + 6 * (Int64)atom + k, total);
    }
    for (int k = 0; k < 6; ++k) {
        const double total = over_lanes(virial[k]);
        if (lane() == 0) sums[k] = total;
    }
    large = over_lanes(large);
    close = over_lanes(close);
    if (lane() != 0) return;
    sums[6] = a.node_energy[index];
    sums[7] = large;
    sums[8] = (double)(a.edge_offset[centre + 1] - a.edge_offset[centre]);
    sums[9] = close;
}

// index: node of the graph
NEQUIP_MD_DEVICE void tally_fixed(const TallyArguments &a, Int64 index) { tally<Int64>(a, index, true); }
NEQUIP_MD_DEVICE void tally_double(const TallyArguments &a, Int64 index) { tally<double>(a, index, false); }

// ---- features of ghosts ----

// Rows are those of the model's array of features, which is [nodes][width]. The values of atoms that travel to and from
// other processes are in arrays of their own, in the order in which they travel.
struct RowArguments {
    const Int64 *row;     // [count], of each index below
    const Int64 *source;  // write_rows: row to copy from for indices from `num_values` on
    const Int64 *start;   // add_rows: [count + 1], where the terms of each row begin
    const Int64 *term;    // add_rows: the terms; below `num_values` a value, else a row, which is counted from there
    Int64 num_values;
    Int64 width, words;  // numbers of a row, and its units of 4 bytes
    void *features;
    void *values;  // [num_values][width]
};

NEQUIP_MD_DEVICE void copy_row(const RowArguments &a, const void *from, Int64 from_row, void *to, Int64 to_row)
{
    const unsigned *const source = (const unsigned *)from + from_row * a.words;
    unsigned *const target = (unsigned *)to + to_row * a.words;
    for (Int64 k = lane(); k < a.words; k += LANES) target[k] = source[k];
}

// Values of atoms outside the model, which have no row, stay as they are. index: value
NEQUIP_MD_DEVICE void read_rows(const RowArguments &a, Int64 index)
{
    if (a.row[index] >= 0) copy_row(a, a.features, a.row[index], a.values, index);
}

// index: value, then image
NEQUIP_MD_DEVICE void write_rows(const RowArguments &a, Int64 index)
{
    if (index < a.num_values)
        copy_row(a, a.values, index, a.features, a.row[index]);
    else
        copy_row(a, a.features, a.source[index - a.num_values], a.features, a.row[index]);
}

// Adds the terms of a row in their order, so that sums do not depend on threads. index: row that has terms
template <typename Number>
NEQUIP_MD_DEVICE void add_rows(const RowArguments &a, Int64 index)
{
    Number *const sum = (Number *)a.features + a.row[index] * a.width;
    for (Int64 k = a.start[index]; k < a.start[index + 1]; ++k) {
        const Int64 term = a.term[k];
        const Number *const values = term < a.num_values ? (const Number *)a.values + term * a.width
                                                         : (const Number *)a.features + (term - a.num_values) * a.width;
        for (Int64 c = lane(); c < a.width; c += LANES) sum[c] += values[c];
    }
}
NEQUIP_MD_DEVICE void add_rows_float(const RowArguments &a, Int64 index) { add_rows<float>(a, index); }
NEQUIP_MD_DEVICE void add_rows_double(const RowArguments &a, Int64 index) { add_rows<double>(a, index); }

}  // namespace nequip_md

NEQUIP_MD_KERNEL(place_images, nequip_md::ImageArguments)
NEQUIP_MD_KERNEL(find_cell, nequip_md::CellArguments)
NEQUIP_MD_KERNEL(count_candidates, nequip_md::CellArguments)
NEQUIP_MD_KERNEL(write_candidates, nequip_md::CellArguments)
NEQUIP_MD_KERNEL(count_edges, nequip_md::EdgeArguments)
NEQUIP_MD_KERNEL(write_edges, nequip_md::EdgeArguments)
NEQUIP_MD_KERNEL(tally_fixed, nequip_md::TallyArguments)
NEQUIP_MD_KERNEL(tally_double, nequip_md::TallyArguments)
NEQUIP_MD_KERNEL(read_rows, nequip_md::RowArguments)
NEQUIP_MD_KERNEL(write_rows, nequip_md::RowArguments)
NEQUIP_MD_KERNEL(add_rows_float, nequip_md::RowArguments)
NEQUIP_MD_KERNEL(add_rows_double, nequip_md::RowArguments)
