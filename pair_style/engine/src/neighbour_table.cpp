#include "neighbour_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "caller_array.h"
#include "error.h"

namespace nequip_md {
namespace {

constexpr int64_t GRAIN = 256;       // centres per task
constexpr double MOST_CELLS = 4;     // cells for each atom; if atoms are far apart, cells become wider
constexpr double FREE_CELLS = 1000;  // cells that are allowed for any number of atoms
constexpr int64_t FEW_CELLS = 3;     // cells along every axis up to which all atoms are searched instead

std::string number(int64_t value) { return std::to_string(value); }

// Whether the caller exchanges features of ghosts.
bool exchanges(const nequip_md_system &system, const Metadata &metadata)
{
    return system.exchange && metadata.message_passing_layers > 0;
}

void check_system(const nequip_md_system &system, const Metadata &metadata, const Compute &compute)
{
    const auto require = [](bool given, const char *what) {
        if (!given) throw Error(NEQUIP_MD_BAD_INPUT, std::string("evaluate: ") + what);
    };
    require(system.num_all >= 0 && system.num_centres >= 0 && system.num_centres <= system.num_all,
            "needs 0 <= num_centres <= num_all");
    require(system.num_all == 0 || (system.positions && system.types && system.type_map),
            "positions, types or type_map is NULL");
    require(system.num_centres == 0 || (system.num_neighbours != nullptr) == (system.neighbours != nullptr),
            "one of num_neighbours and neighbours is NULL; give both, or neither to have neighbours searched");
    require(std::isfinite(system.skin) && system.skin >= 0, "skin must be a number that is not negative");
    require(
        metadata.message_passing_layers == 0 || system.num_all == 0 || system.owner || system.cell || system.exchange,
        "this model passes messages, so owner must say which centre each atom is a copy of; it is NULL");
    require(system.cell || !(system.periodic[0] || system.periodic[1] || system.periodic[2]),
            "periodic is set but cell is NULL; give the lattice vectors");
    require(!system.cell || !(system.neighbours || system.owner),
            "with cell the engine makes images and lists itself; leave num_neighbours, neighbours and owner NULL");
    require(!system.cell || !exchanges(system, metadata),
            "cell is for one process and exchange for several; set one of them to NULL");
    require(system.memory == NEQUIP_MD_HOST_MEMORY || system.memory == NEQUIP_MD_GPU_MEMORY,
            "memory must be NEQUIP_MD_HOST_MEMORY or NEQUIP_MD_GPU_MEMORY");
    require(system.memory == NEQUIP_MD_HOST_MEMORY || compute.gpu(),
            "memory says that the arrays lie on a GPU, but this model runs on the CPU; give arrays in host memory, or "
            "export the model with: nequip-md-export MODEL -o OUT.pt2 --device cuda");
}

template <typename Value>
at::Tensor on_host(const std::vector<Value> &values, at::ScalarType type)
{
    return at::from_blob(const_cast<Value *>(values.data()), {static_cast<int64_t>(values.size())},
                         at::TensorOptions().dtype(type));
}

int *ints(const at::Tensor &tensor) { return tensor.data_ptr<int>(); }

}  // namespace

NeighbourTable::NeighbourTable(const Compute &compute, const Metadata &metadata, const std::vector<double> &shortest)
    : compute_(compute),
      metadata_(metadata),
      num_centres_(at::zeros({1}, compute.integers())),
      cutoff_(at::tensor(metadata.pair_cutoffs, at::TensorOptions().dtype(at::kDouble)).to(compute.device()))
{
    if (!shortest.empty())
        shortest_ = at::tensor(shortest, at::TensorOptions().dtype(at::kDouble)).to(compute.device());
}

// Makes room for `size` rows and some more, so that rebuilt lists rarely need new memory.
void NeighbourTable::reserve(at::Tensor &tensor, int64_t size, const at::TensorOptions &options, at::IntArrayRef rest)
{
    if (tensor.defined() && tensor.size(0) >= size) return;
    std::vector<int64_t> shape{size + size / 16 + 32};
    shape.insert(shape.end(), rest.begin(), rest.end());
    tensor = at::Tensor();  // freed before the new one is allocated, as both might not fit
    tensor = at::zeros(shape, options);
    ++num_moves_;
}

void NeighbourTable::update(const nequip_md_system &system)
{
    check_system(system, metadata_, compute_);
    std::optional<Lattice> lattice;
    if (system.cell) lattice.emplace(system.cell, system.periodic);
    const Lattice *const repeated = lattice ? &*lattice : nullptr;
    check_positions(given_positions(system));
    const bool keep = valid_ && !system.lists_changed && same_atoms(system);
    if (!keep) {
        valid_ = false;
        number_nodes(system, repeated);
    }
    upload_positions(system, repeated);
    if (keep) return;
    if (system.neighbours || num_centres() == 0)
        copy_lists(system);
    else
        search(system);
    valid_ = true;
}

// Without this check, an atom at NaN would silently lose its edges, since comparisons with NaN are false.
void NeighbourTable::check_positions(const at::Tensor &given) const
{
    if (!given.is_cpu() && at::isfinite(given).all().item<bool>()) return;
    const at::Tensor here = given.cpu();
    const double *const values = here.data_ptr<double>();
    for (int64_t k = 0; k < here.numel(); ++k)
        if (!std::isfinite(values[k]))
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "the position of an atom is not finite; the simulation has become unstable, or its input "
                        "is damaged",
                        static_cast<int>(k / 3));
}

at::Tensor NeighbourTable::given_positions(const nequip_md_system &system) const
{
    return caller_array(compute_, system.memory == NEQUIP_MD_GPU_MEMORY, system.positions, {system.num_all, 3},
                        "positions");
}

at::Tensor NeighbourTable::given_types(const nequip_md_system &system) const
{
    return caller_array(compute_, system.memory == NEQUIP_MD_GPU_MEMORY, system.types, {system.num_all}, "types");
}

NeighbourTable::Kind NeighbourTable::kind(const nequip_md_system &system) const
{
    Kind kind;
    kind.num_centres = system.num_centres;
    kind.has_cell = system.cell != nullptr;
    for (int axis = 0; axis < 3; ++axis) kind.periodic[axis] = system.periodic[axis] != 0;
    kind.exchange = exchanges(system, metadata_);
    return kind;
}

bool NeighbourTable::same_atoms(const nequip_md_system &system) const
{
    if (kind_ != kind(system) || static_cast<size_t>(system.num_all) != caller_types_.size()) return false;
    if (system.memory == NEQUIP_MD_GPU_MEMORY)
        return caller_type_.defined() && at::equal(caller_type_, given_types(system));
    return std::equal(caller_types_.begin(), caller_types_.end(), system.types);
}

void NeighbourTable::upload_positions(const nequip_md_system &system, const Lattice *lattice)
{
    at::Tensor given = given_positions(system);
    if (!lattice && !compute_.gpu()) {
        positions_ = given;
        return;
    }
    positions_ = placed_;
    if (system.num_all == 0) return;
    if (given.device() != compute_.device()) {
        at::Tensor &target = lattice ? given_ : placed_;
        std::memcpy(staged_.data_ptr<double>(), system.positions, given.nbytes());
        target.narrow(0, 0, system.num_all).copy_(staged_.narrow(0, 0, system.num_all), /*non_blocking=*/true);
        given = target;
    } else if (!lattice) {
        placed_.narrow(0, 0, system.num_all).copy_(given);
    }
    if (!lattice) return;
    ImageArguments a{};
    a.given = given.data_ptr<double>();
    a.atom = ints(image_atom_);
    a.shift = ints(image_shift_);
    std::copy_n(lattice->vectors(), 9, a.lattice);
    a.num_positions = num_positions();
    a.positions = placed_.data_ptr<double>();
    NEQUIP_MD_RUN(compute_, place_images, a, (num_positions() + compute_.lanes() - 1) / compute_.lanes());
}

void NeighbourTable::number_nodes(const nequip_md_system &system, const Lattice *lattice)
{
    kind_ = kind(system);
    const at::Tensor given = given_types(system), types = given.cpu();
    caller_type_ = given.is_cpu() ? at::Tensor() : given.clone();
    caller_types_.assign(types.data_ptr<int>(), types.data_ptr<int>() + system.num_all);
    Numbering numbers;
    numbers.types.resize(system.num_all);
    for (int atom = 0; atom < system.num_all; ++atom) {
        const int type = caller_types_[atom];
        if (type < 0 || type >= system.num_caller_types)
            throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: type " + number(type) + " lies outside type_map", atom);
        const int mapped = system.type_map[type];
        if (mapped < -1 || mapped >= metadata_.num_types())
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "evaluate: type_map holds " + number(mapped) + ", the model has types 0 to " +
                            number(metadata_.num_types() - 1),
                        atom);
        numbers.types[atom] = mapped;
    }
    if (lattice) {
        const at::Tensor positions = given_positions(system).cpu();
        numbers.images =
            make_images(*lattice, positions.data_ptr<double>(), numbers.types, metadata_.cutoff + system.skin);
    }

    std::vector<bool> is_centre(system.num_all, false);
    std::vector<int64_t> node_of_atom(system.num_all, -1);
    for (int k = 0; k < system.num_centres; ++k) {
        const int atom = system.centres ? system.centres[k] : k;
        if (atom < 0 || atom >= system.num_all || is_centre[atom])
            throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: centres[" + number(k) + "] = " + number(atom) +
                                                 " lies outside the atoms or is there twice");
        is_centre[atom] = true;
        if (numbers.types[atom] < 0) continue;
        node_of_atom[atom] = static_cast<int64_t>(numbers.centres.size());
        numbers.centres.push_back(atom);
    }
    if (metadata_.message_passing_layers > 0) {
        const std::vector<int64_t> node_of_centre = node_of_atom;
        for (int atom = 0; atom < system.num_all; ++atom) {
            if (kind_.exchange && !is_centre[atom]) {
                // models with message passing are evaluated as a whole, so the number of nodes before the ghosts is
                // known
                node_of_atom[atom] =
                    static_cast<int64_t>(numbers.centres.size() + MIN_PHANTOMS + numbers.ghosts.size());
                numbers.ghosts.push_back(atom);
            }
            if (kind_.exchange || node_of_atom[atom] >= 0 || numbers.types[atom] < 0) continue;
            if (lattice)
                throw Error(NEQUIP_MD_BAD_INPUT,
                            "evaluate: this model passes messages, so with cell every atom must be a centre; one is "
                            "not",
                            atom);
            const int owner = system.owner[atom];
            if (owner < 0 || owner >= system.num_all || node_of_centre[owner] < 0)
                throw Error(NEQUIP_MD_BAD_INPUT,
                            "evaluate: owner of an atom is " + number(owner) + ", which is no centre", atom);
            node_of_atom[atom] = node_of_centre[owner];
        }
        numbers.node_of_atom = std::move(node_of_atom);
    }
    if (uploaded_ && numbers == numbers_ && image_atom_.defined() == (lattice != nullptr)) return;
    upload(std::move(numbers), lattice != nullptr);
}

void NeighbourTable::upload(Numbering numbers, bool periodic)
{
    uploaded_ = false;  // stays false if an exception is thrown below
    const auto num_atoms = static_cast<int64_t>(numbers.types.size());
    const Images &images = numbers.images;
    std::vector<int> types = numbers.types;
    for (size_t image = types.size(); image < images.atom.size(); ++image)
        types.push_back(numbers.types[images.atom[image]]);
    const auto num_positions = static_cast<int64_t>(types.size());
    const auto fill = [&](at::Tensor &tensor, const at::Tensor &values, at::ScalarType type) {
        reserve(tensor, values.size(0), compute_.integers().dtype(type));
        tensor.narrow(0, 0, values.size(0)).copy_(values);
    };
    fill(type_, on_host(types, at::kInt), at::kLong);
    fill(centre_atom_, on_host(numbers.centres, at::kInt), at::kInt);
    num_centres_.fill_(static_cast<int64_t>(numbers.centres.size()));
    if (metadata_.message_passing_layers > 0) fill(node_of_atom_, on_host(numbers.node_of_atom, at::kLong), at::kLong);
    ghost_atom_ = on_host(numbers.ghosts, at::kInt).to(compute_.integers());
    reserve(list_offset_, centre_capacity() + 1, compute_.integers());
    if (periodic != image_atom_.defined()) ++num_moves_;
    if (periodic) {
        fill(image_atom_, on_host(images.atom, at::kInt), at::kInt);
        reserve(image_shift_, num_positions, compute_.integers().dtype(at::kInt), {3});
        image_shift_.narrow(0, 0, num_positions).copy_(on_host(images.shift, at::kInt).view({num_positions, 3}));
    } else {
        image_atom_ = image_shift_ = at::Tensor();
    }
    if (compute_.gpu() || periodic) reserve(placed_, num_positions, compute_.doubles(), {3});
    if (compute_.gpu()) {
        if (periodic) reserve(given_, num_atoms, compute_.doubles(), {3});
        reserve(staged_, num_atoms, at::TensorOptions().dtype(at::kDouble).pinned_memory(true), {3});
    }
    num_images_ = num_positions - num_atoms;
    numbers_ = std::move(numbers);
    ++num_numberings_;
    uploaded_ = true;
}

void NeighbourTable::reserve_list(int64_t candidates)
{
    num_candidates_ = candidates;
    reserve(list_, candidates, compute_.integers().dtype(at::kInt));
}

void NeighbourTable::copy_lists(const nequip_md_system &system)
{
    const int mask = system.neighbour_mask ? system.neighbour_mask : ~0;
    const auto neighbour = [&](int centre, int k) {
        const int atom = system.neighbours[centre][k] & mask;
        if (atom < 0 || atom >= system.num_all)
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "evaluate: a neighbour is " + number(atom) + ", which lies outside the atoms", centre);
        return atom;
    };

    std::vector<int64_t> offset(num_centres() + 1, 0);
    at::parallel_for(0, num_centres(), GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t node = begin; node < end; ++node) {
            const int centre = centres()[node];
            for (int k = 0; k < system.num_neighbours[centre]; ++k)
                if (numbers_.types[neighbour(centre, k)] >= 0) ++offset[node + 1];
        }
    });
    for (int64_t node = 0; node < num_centres(); ++node) offset[node + 1] += offset[node];

    reserve_list(offset.back());
    const bool direct = !compute_.gpu();
    const at::Tensor host =
        direct ? list_ : at::empty({offset.back()}, at::TensorOptions().dtype(at::kInt).pinned_memory(true));
    int *const list = ints(host);
    at::parallel_for(0, num_centres(), GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t node = begin; node < end; ++node) {
            const int centre = centres()[node];
            int64_t slot = offset[node];
            for (int k = 0; k < system.num_neighbours[centre]; ++k) {
                const int atom = neighbour(centre, k);
                if (numbers_.types[atom] >= 0) list[slot++] = atom;
            }
        }
    });
    if (!direct) list_.narrow(0, 0, offset.back()).copy_(host);
    list_offset_.narrow(0, 0, num_centres() + 1).copy_(on_host(offset, at::kLong));
}

// Finds all atoms within cutoff + skin by cells of that width, or among all atoms if there are few cells.
void NeighbourTable::search(const nequip_md_system &system)
{
    const int64_t count = num_positions();
    CellArguments a{};
    a.atoms = atoms();
    a.num_atoms = count;
    a.skin = system.skin;
    a.list_offset = longs(list_offset_);
    const double reach = metadata_.cutoff + system.skin;
    double extent[3], cells[3];
    const at::Tensor around = positions_.narrow(0, 0, count);
    const at::Tensor lowest = around.amin(0).cpu(), highest = around.amax(0).cpu();
    for (int axis = 0; axis < 3; ++axis) {
        a.origin[axis] = lowest.data_ptr<double>()[axis];
        extent[axis] = highest.data_ptr<double>()[axis] - a.origin[axis];
        a.width[axis] = reach;
        cells[axis] = std::max(1.0, std::floor(extent[axis] / reach));
    }
    while (cells[0] * cells[1] * cells[2] > MOST_CELLS * static_cast<double>(count) + FREE_CELLS) {
        const auto longest = std::max_element(cells, cells + 3) - cells;
        a.width[longest] *= 2;
        cells[longest] = std::max(1.0, std::floor(extent[longest] / a.width[longest]));
    }
    bool few = true;
    for (int axis = 0; axis < 3; ++axis) {
        a.cells[axis] = static_cast<int64_t>(cells[axis]);
        if (a.cells[axis] == 1) a.width[axis] = std::max(a.width[axis], extent[axis] + 1);
        few = few && a.cells[axis] <= FEW_CELLS;
    }

    at::Tensor cell, sorted, order, first;  // must live until the kernels are launched
    if (!few) {
        const int64_t num_cells = a.cells[0] * a.cells[1] * a.cells[2];
        cell = at::empty({count}, compute_.integers());
        a.cell = longs(cell);
        NEQUIP_MD_RUN(compute_, find_cell, a, (count + compute_.lanes() - 1) / compute_.lanes());
        // the sort is stable, so that the order of atoms in a cell, and of every sum, is always the same
        std::tie(sorted, order) = at::sort(cell, /*stable=*/true, /*dim=*/0, /*descending=*/false);
        first = at::searchsorted(sorted, at::arange(num_cells + 1, compute_.integers()));
        a.atom_of_rank = longs(order);
        a.first_of_cell = longs(first);
    }
    NEQUIP_MD_RUN(compute_, count_candidates, a, num_centres());
    list_offset_.narrow(0, 1, num_centres()).cumsum_(0);
    reserve_list(list_offset_[num_centres()].item<int64_t>());
    a.list = ints(list_);
    NEQUIP_MD_RUN(compute_, write_candidates, a, num_centres());
}

Atoms NeighbourTable::atoms() const
{
    return {num_positions() ? positions_.data_ptr<double>() : nullptr,
            longs(type_),
            ints(centre_atom_),
            longs(num_centres_),
            cutoff_.data_ptr<double>(),
            shortest_.defined() ? shortest_.data_ptr<double>() : nullptr,
            metadata_.num_types()};
}

EdgeArguments NeighbourTable::arguments() const
{
    EdgeArguments a{};
    a.atoms = atoms();
    a.list_offset = longs(list_offset_);
    a.list = ints(list_);
    a.atom = image_atom_.defined() ? ints(image_atom_) : nullptr;
    a.node_of_atom = node_of_atom_.defined() ? longs(node_of_atom_) : nullptr;
    a.padding = 2 * metadata_.cutoff;
    return a;
}

int NeighbourTable::atom(int64_t position) const
{
    return position < num_atoms() ? static_cast<int>(position) : numbers_.images.atom[position];
}

at::Tensor NeighbourTable::host_positions() const { return positions_.narrow(0, 0, num_positions()).cpu(); }

at::Tensor NeighbourTable::node_types(int64_t first, int64_t count, int64_t num_nodes, int64_t num_atoms) const
{
    const at::Tensor own = type_.index_select(0, centre_atom_.narrow(0, first, count));
    std::vector<at::Tensor> parts{own, at::zeros({num_nodes - count}, own.options())};
    // atoms outside the model get type 0, as they are never neighbours
    const at::Tensor ghosts =
        node_of_atom_.defined() ? type_.index_select(0, ghost_atom_) : type_.narrow(0, 0, num_atoms);
    parts.push_back(ghosts.clamp_min(0));
    return at::cat(parts);
}

}  // namespace nequip_md
