// The edges of one configuration, or of some of its centres, as inputs of an artifact (docs/artifact.md).
#pragma once

#include <ATen/core/Tensor.h>

#include "compute.h"
#include "neighbour_table.h"

namespace nequip_md {

struct Graph {
    at::Tensor edge_vectors;    // [E, 3] float64, r_j - r_i
    at::Tensor edge_index;      // [2, E] int64, centre and neighbour node, ascending by centre
    at::Tensor row_ptr;         // [nodes + 1] int64
    at::Tensor node_types;      // [nodes + ghosts] int64
    at::Tensor neighbour_atom;  // [E] int32, of the caller's atoms; not of the padding

    int64_t first, count;  // the first nodes are these centres
    int64_t num_nodes() const { return row_ptr.size(0) - 1; }
    int64_t num_edges() const { return edge_vectors.size(0); }
};

// Offset of each centre's edges, [centres + 1] int64. Edges are the table's candidates that are within their cutoff
// now; centres beyond the table's have none.
at::Tensor count_edges(const Compute &compute, const NeighbourTable &table, int64_t num_centres);

// The graph of the centres first <= node < first + count with room for num_edges edges. Unused room is filled with
// padding edges of the phantoms, at least up to two edges, the smallest number that artifacts are exported for.
Graph build_graph(const Compute &compute, const NeighbourTable &table, const at::Tensor &edge_offset, int64_t first,
                  int64_t count, int64_t num_nodes, int64_t num_edges, const at::Tensor &node_types);

}  // namespace nequip_md
