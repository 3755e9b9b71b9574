#include "graph.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

namespace nequip_md {
namespace {

constexpr int64_t MIN_EDGES = 2;  // artifacts are exported for two edges and more

// Edges between the phantoms at twice the cutoff, where every model is zero with all its derivatives.
void pad_edges(Graph &graph, int64_t count, int64_t first_phantom, double cutoff)
{
    const at::Tensor vectors = at::zeros({count, 3}, graph.edge_vectors.options());
    vectors.select(1, 0).fill_(2 * cutoff);
    const at::Tensor nodes = first_phantom + at::arange(count, graph.edge_index.options());
    graph.edge_vectors = at::cat({graph.edge_vectors, vectors});
    graph.edge_index = at::cat({graph.edge_index, at::stack({nodes, 2 * first_phantom + 1 - nodes})}, 1);
}

}  // namespace

Graph build_graph(const NeighbourTable &table, const at::Tensor &positions, double cutoff)
{
    Graph graph;
    graph.node_types = table.node_types;
    const at::Tensor candidates =
        positions.index_select(0, table.neighbour_atom) - positions.index_select(0, table.centre_atom);
    const at::Tensor kept = at::nonzero(candidates.square().sum(1) < table.cutoff_squared).squeeze(1);
    graph.num_real_edges = kept.size(0);
    graph.edge_vectors = candidates.index_select(0, kept);
    graph.centre_atom = table.centre_atom.index_select(0, kept);
    graph.neighbour_atom = table.neighbour_atom.index_select(0, kept);
    graph.edge_index =
        at::stack({table.centre_node.index_select(0, kept), table.neighbour_node.index_select(0, kept)}).to(at::kLong);

    if (graph.num_real_edges < MIN_EDGES)
        pad_edges(graph, MIN_EDGES - graph.num_real_edges, table.num_centres(), cutoff);
    const at::Tensor boundaries = at::arange(table.num_nodes() + 1, graph.edge_index.options());
    graph.row_ptr = at::searchsorted(graph.edge_index.select(0, 0), boundaries);
    return graph;
}

}  // namespace nequip_md
