// Big systems in pieces: some centres at a time, so that memory is bounded.
#pragma once

#include <cstdint>

#include "graph.h"
#include "network.h"

namespace nequip_md {

class Chunks {
 public:
    // max_edges: of one evaluation; 0: everything at once, and on a GPU that runs out of memory ever smaller pieces.
    Chunks(int64_t max_edges, bool may_shrink) : max_edges_(max_edges), may_shrink_(may_shrink) {}

    // The same as network.run(graph), for a strictly local model: a centre's energy depends on its own edges alone, so
    // pieces are exact. A centre is never divided, so a piece may have more edges than max_edges.
    Evaluation run(Network &network, const Graph &graph, double cutoff);

    int64_t num_pieces() const { return num_pieces_; }  // of the last run

 private:
    Evaluation in_pieces(Network &network, const Graph &graph, double cutoff);

    int64_t max_edges_;
    bool may_shrink_;
    int64_t num_pieces_ = 0;
};

}  // namespace nequip_md
