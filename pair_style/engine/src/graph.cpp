#include "graph.h"

#include <algorithm>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace nequip_md {
namespace {

constexpr int64_t MIN_EDGES = 2;  // artifacts are exported for at least two edges

}  // namespace

at::Tensor count_edges(const Compute &compute, const NeighbourTable &table, int64_t num_centres)
{
    const at::Tensor offset =
        num_centres ? at::empty({num_centres + 1}, compute.integers()) : at::zeros({1}, compute.integers());
    EdgeArguments a = table.arguments();
    a.edge_offset = longs(offset);
    NEQUIP_MD_RUN(compute, count_edges, a, num_centres);
    offset.cumsum_(0);
    return offset;
}

Graph build_graph(const Compute &compute, const NeighbourTable &table, const at::Tensor &edge_offset, int64_t first,
                  int64_t count, int64_t num_nodes, int64_t num_edges, const at::Tensor &node_types)
{
    num_edges = std::max(num_edges, MIN_EDGES);
    Graph graph;
    graph.edge_vectors = at::empty({num_edges, 3}, compute.doubles());
    graph.edge_index = at::empty({2, num_edges}, compute.integers());
    graph.row_ptr = at::empty({num_nodes + 1}, compute.integers());
    graph.neighbour_atom = at::empty({num_edges}, compute.integers().dtype(at::kInt));
    graph.node_types = node_types;
    graph.first = first;
    graph.count = count;

    EdgeArguments a = table.arguments();
    a.edge_offset = longs(edge_offset);
    a.first = first;
    a.count = count;
    a.num_nodes = num_nodes;
    a.num_edges = num_edges;
    a.vectors = graph.edge_vectors.data_ptr<double>();
    a.centre_node = longs(graph.edge_index);
    a.neighbour_node = a.centre_node + num_edges;
    a.neighbour_atom = graph.neighbour_atom.data_ptr<int>();
    a.row_ptr = longs(graph.row_ptr);
    NEQUIP_MD_RUN(compute, write_edges, a, num_nodes);
    return graph;
}

}  // namespace nequip_md
