// The engine's loops (kernels.h) behind one C function, for test_warp.py: as a GPU runs them, with 32 threads for a warp, if WARP is
// defined, and else as a CPU does.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <numeric>
#include <thread>
#include <vector>

#ifdef WARP
#define __CUDACC_RTC__
#define __device__
#define __global__
struct Index {
    int x;
};
thread_local Index threadIdx, blockIdx{0}, blockDim{1024};
std::barrier<> together(32);

unsigned __ballot_sync(unsigned, bool yes)
{
    static std::atomic<unsigned> votes;
    together.arrive_and_wait();
    votes = 0;
    together.arrive_and_wait();
    if (yes) votes |= 1u << threadIdx.x % 32;
    together.arrive_and_wait();
    return votes;
}
template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int step)
{
    static Value of_lane[32];
    together.arrive_and_wait();
    of_lane[threadIdx.x % 32] = value;
    together.arrive_and_wait();
    return of_lane[threadIdx.x % 32 ^ step];
}
int __popc(unsigned bits) { return __builtin_popcount(bits); }
long long __double2ll_rn(double value) { return std::llrint(value); }
template <typename Value>
void atomicAdd(Value *sum, Value value)
{
    std::atomic_ref<Value>(*sum).fetch_add(value);
}
#endif

#include "kernels.h"

#ifdef WARP
template <typename Arguments>
void launch(void (*kernel)(Arguments, long long), const Arguments &arguments, long long count)
{
    std::vector<std::thread> lanes;
    for (int lane = 0; lane < 32; ++lane)
        lanes.emplace_back([=] {
            for (int warp = 0; warp < count; ++warp) {
                threadIdx.x = 32 * warp + lane;
                kernel(arguments, count);
            }
        });
    for (std::thread &lane : lanes) lane.join();
}
#define RUN(name, arguments, count) launch(name##_kernel, arguments, count)
#else
#define RUN(name, arguments, count) \
    for (long long index = 0; index < (count); ++index) nequip_md::name(arguments, index)
#endif

using nequip_md::Int64;

// cells: along every axis; 0: without. Arrays as in kernels.h; list has room for all pairs. gradient = 0.1 vectors.
extern "C" void run(const nequip_md::Atoms *atoms, int num_atoms, int num_centres, int cells, double extent, double skin, Int64 *list_offset,
                    int *list, Int64 num_nodes, Int64 num_edges, double padding, double *vectors, Int64 *nodes, int *neighbour_atom,
                    Int64 *row_ptr, Int64 *forces, double *sums)
{
    nequip_md::CellArguments c{};
    c.atoms = *atoms;
    c.num_atoms = num_atoms;
    c.skin = skin;
    c.list_offset = list_offset;
    std::vector<Int64> cell(num_atoms), order(num_atoms), first(cells * cells * cells + 1);
    if (cells) {
        for (int axis = 0; axis < 3; ++axis) c.width[axis] = extent / cells, c.cells[axis] = cells;
        c.cell = cell.data();
        RUN(find_cell, c, (num_atoms + nequip_md::LANES - 1) / nequip_md::LANES);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](Int64 a, Int64 b) { return cell[a] < cell[b]; });
        for (size_t k = 0; k < first.size(); ++k)
            first[k] = std::count_if(cell.begin(), cell.end(), [&](Int64 number) { return number < static_cast<Int64>(k); });
        c.atom_of_rank = order.data();
        c.first_of_cell = first.data();
    }
    list_offset[0] = 0;
    RUN(count_candidates, c, num_centres);
    std::partial_sum(list_offset, list_offset + num_centres + 1, list_offset);
    c.list = list;
    RUN(write_candidates, c, num_centres);

    std::vector<Int64> offset(num_nodes + 1, -1);
    nequip_md::EdgeArguments e{};
    e.atoms = *atoms;
    e.list_offset = list_offset;
    e.list = list;
    e.edge_offset = offset.data();
    RUN(count_edges, e, num_nodes);
    std::partial_sum(offset.begin(), offset.end(), offset.begin());
    e.count = e.num_nodes = num_nodes;
    e.num_edges = num_edges;
    e.padding = padding;
    e.vectors = vectors;
    e.centre_node = nodes;
    e.neighbour_node = nodes + num_edges;
    e.neighbour_atom = neighbour_atom;
    e.row_ptr = row_ptr;
    RUN(write_edges, e, num_nodes);

    std::vector<double> gradient(3 * num_edges), energy(num_nodes);
    for (Int64 k = 0; k < 3 * num_edges; ++k) gradient[k] = 0.1 * vectors[k];
    for (Int64 k = 0; k < num_nodes; ++k) energy[k] = k;
    nequip_md::TallyArguments t{};
    t.row_ptr = row_ptr;
    t.edge_offset = offset.data();
    t.vectors = vectors;
    t.gradient = gradient.data();
    t.node_energy = energy.data();
    t.neighbour_atom = neighbour_atom;
    t.centre_atom = atoms->centre_atom;
    t.num_centres = atoms->num_centres;
    t.forces = forces;
    t.sums = sums;
    RUN(tally_fixed, t, num_nodes);
}
