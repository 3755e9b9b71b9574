// Evaluation of small systems on a GPU by a recording (CUDA graph) that is replayed every step.
//
// Launching about fifty kernels one by one takes longer than running them on few atoms. A recording has fixed sizes
// with room for some more edges and atoms. Unused room is filled with padding, whose contribution is exactly zero.
#pragma once

#include <memory>

#include "network.h"
#include "tally.h"

namespace nequip_md {

class Replay {
 public:
    explicit Replay(const Compute &compute) : compute_(compute) {}

    // Whether a system with this number of edges gains from a recording.
    bool worthwhile(int64_t num_edges) const;

    // Evaluates the table's centres with a recording that fits them. Returns null if there is none.
    const Tally *run(const NeighbourTable &table, const Tally::Wanted &wanted, const Tally::Fetched &fetched);

    int64_t num_edges() const { return num_edges_; }  // of every recording, with padding

    // Makes a recording for the current table with room for some more edges, without running it. If a model cannot be
    // recorded, no further attempt is made.
    void record(const NeighbourTable &table, Network &network, const Tally::Wanted &wanted, int64_t num_edges);

 private:
    struct Recorded {
        Tally tally;
        std::unique_ptr<Gpu::Recording> recording;
    };
    std::unique_ptr<Recorded> &of(const Tally::Wanted &wanted)
    {
        return recorded_[2 * wanted.atom_virials + wanted.centroid_virials];
    }
    bool fits(const NeighbourTable &table) const;
    void forget();

    const Compute &compute_;
    bool possible_ = true;
    int64_t moves_ = -1, numbering_ = -1;    // of the table
    int64_t num_nodes_ = 0, num_edges_ = 0;  // of every recording
    at::Tensor node_types_;                  // read by every recording
    std::unique_ptr<Recorded> recorded_[4];  // by what is wanted
};

}  // namespace nequip_md
