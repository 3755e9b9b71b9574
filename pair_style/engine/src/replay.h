// Small systems on a GPU: the whole evaluation recorded once and replayed every step.
//
// Launching some fifty kernels one by one takes longer than running them on few atoms. A recording has fixed sizes,
// with room for more edges and atoms than there were; what is not needed is padding, which is exactly zero.
#pragma once

#include <memory>

#include "network.h"
#include "tally.h"

namespace nequip_md {

class Replay {
 public:
    explicit Replay(const Compute &compute) : compute_(compute) {}

    // Whether a system of so many edges gains from this.
    bool worthwhile(int64_t num_edges) const;

    // Evaluate the table's centres, if a recording fits them. Null: none does.
    const Tally *run(const NeighbourTable &table, const Tally::Wanted &wanted, const Tally::Fetched &fetched);

    int64_t num_edges() const { return num_edges_; }  // of every recording, with padding

    // Make a recording for the table as it is, and for more edges than these. It runs nothing. A model that cannot be
    // recorded is left alone from then on.
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
