// Evaluation of a configuration. A large one is evaluated in pieces, some centres at a time, which bounds memory.
#pragma once

#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

#include "network.h"
#include "tally.h"

namespace nequip_md {

class Pieces {
 public:
    // max_edges: the caller's limit for one piece; 0: no limit. A centre is never divided, so a piece may have more
    // edges than that. divisible: whether the model has no message passing, so that a centre's energy depends on its
    // own edges only and pieces give exact results.
    //
    // On a GPU a first small piece measures memory. Further pieces have as many edges as fit into the free memory, but
    // no more than needed to keep the GPU busy. If memory runs out nevertheless, pieces become smaller.
    Pieces(const Compute &compute, int64_t max_edges, bool divisible);

    // Evaluates all centres of the table and adds them to the tally.
    void run(const NeighbourTable &table, Network &network, Tally &tally);

    // Adds the last run to another tally. Returns false if its gradients were not kept, so that it must be run again.
    // They are kept for models with message passing, which must run equally often on all processes.
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
    at::Tensor node_types_;  // of all nodes, for the table's numbering number `types_of_`
    int64_t types_of_ = -1;
};

}  // namespace nequip_md
