// Evaluation of a configuration, some centres at a time where it is big, so that memory is bounded.
#pragma once

#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

#include "network.h"
#include "tally.h"

namespace nequip_md {

class Pieces {
 public:
    // max_edges: of one piece; 0: no limit of the caller's. divisible: of a model without message passing, where a
    // centre's energy depends on its own edges alone, so that pieces are exact. A centre is never divided, so a piece
    // may have more edges than the limit.
    //
    // On a GPU a piece has as many edges as are sure to fit into its free memory, by what a first small piece took, but
    // no more than make it busy; should memory run out all the same, pieces become smaller.
    Pieces(const Compute &compute, int64_t max_edges, bool divisible);

    // Evaluate all centres of the table and add them up.
    void run(const NeighbourTable &table, Network &network, Tally &tally);

    // Add the last run once more, to another tally. False: it was not kept, so it must be run again. What is not
    // divisible is kept: models with message passing exchange features when they run, on all processes equally often.
    bool add_again(const NeighbourTable &table, Tally &tally) const;

    int64_t num_pieces() const { return num_pieces_; }  // of the last run
    int64_t num_edges() const { return num_edges_; }
    int64_t num_evaluated() const { return num_evaluated_; }  // edges with padding

 private:
    void run_piece(const NeighbourTable &table, Network &network, Tally &tally, const at::Tensor &edge_offset,
                   int64_t first, int64_t count, int64_t num_edges);
    void learn_limit(int64_t bytes, int64_t num_edges);

    const Compute &compute_;
    int64_t max_edges_;
    bool divisible_;
    bool learned_ = false;
    int64_t num_pieces_ = 0, num_edges_ = 0, num_evaluated_ = 0;
    struct Kept {
        at::Tensor edge_offset;
        Graph graph;
        Evaluation evaluation;
    };
    std::optional<Kept> kept_;
    at::Tensor node_types_;  // of the whole, of the table's update number `types_of_`
    int64_t types_of_ = -1;
};

}  // namespace nequip_md
