// The edges of one configuration, as the artifact contract wants them.
#pragma once

#include <ATen/core/Tensor.h>

#include "neighbour_table.h"

namespace nequip_md {

struct Graph {
    at::Tensor edge_vectors;  // [E, 3] float64, r_j - r_i
    at::Tensor edge_index;    // [2, E] int64, centre and neighbour node, ascending by centre
    at::Tensor row_ptr;       // [N + PHANTOMS + 1] int64
    at::Tensor node_types;    // [N + PHANTOMS + others] int64

    int64_t num_real_edges;     // E without padding; the real edges come first
    at::Tensor centre_atom;     // [real edges] int32
    at::Tensor neighbour_atom;  // [real edges] int32
};

// The centres first <= node < last with their edges, which are first_edge <= edge < last_edge. All other nodes become
// ghosts, so this is for strictly local models only.
Graph some_centres(const Graph &graph, int64_t first, int64_t last, int64_t first_edge, int64_t last_edge, double cutoff);

// Edges of the table that are shorter than their cutoff, padded to at least two.
// positions: [num_all, 3] float64 on the table's device; cutoff: the model's largest.
Graph build_graph(const NeighbourTable &table, const at::Tensor &positions, double cutoff);

}  // namespace nequip_md
