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

// The edges are there: pad them and find the offsets of the rows.
void complete(Graph &graph, int64_t num_centres, double cutoff)
{
    graph.num_real_edges = graph.edge_vectors.size(0);
    if (graph.num_real_edges < MIN_EDGES) pad_edges(graph, MIN_EDGES - graph.num_real_edges, num_centres, cutoff);
    const at::Tensor boundaries = at::arange(num_centres + PHANTOMS + 1, graph.edge_index.options());
    graph.row_ptr = at::searchsorted(graph.edge_index.select(0, 0).contiguous(), boundaries);
}

}  // namespace

Graph build_graph(const NeighbourTable &table, const at::Tensor &positions, double cutoff)
{
    Graph graph;
    graph.node_types = table.node_types;
    const at::Tensor candidates =
        positions.index_select(0, table.neighbour_atom) - positions.index_select(0, table.centre_atom);
    const at::Tensor kept = at::nonzero(candidates.square().sum(1) < table.cutoff_squared).squeeze(1);
    graph.edge_vectors = candidates.index_select(0, kept);
    graph.centre_atom = table.centre_atom.index_select(0, kept);
    graph.neighbour_atom = table.neighbour_atom.index_select(0, kept);
    graph.edge_index =
        at::stack({table.centre_node.index_select(0, kept), table.neighbour_node.index_select(0, kept)}).to(at::kLong);
    complete(graph, table.num_centres(), cutoff);
    return graph;
}

Graph some_centres(const Graph &graph, int64_t first, int64_t last, int64_t first_edge, int64_t last_edge, double cutoff)
{
    const int64_t count = last - first, edges = last_edge - first_edge;
    const int64_t phantoms = graph.row_ptr.size(0) - 1 - PHANTOMS;
    Graph piece;
    // the piece's centres, phantoms, and then every node once more, as a ghost
    piece.node_types = at::cat({graph.node_types.narrow(0, first, count),
                                graph.node_types.narrow(0, phantoms, PHANTOMS), graph.node_types});
    // a copy, since the compiled code wants its inputs aligned
    piece.edge_vectors = graph.edge_vectors.narrow(0, first_edge, edges).clone();
    const at::Tensor index = graph.edge_index.narrow(1, first_edge, edges);
    piece.edge_index = at::stack({index.select(0, 0) - first, index.select(0, 1) + (count + PHANTOMS)});
    complete(piece, count, cutoff);
    return piece;
}

}  // namespace nequip_md
