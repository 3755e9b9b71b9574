// A sign that a run has left what the model was trained on: atoms that are closer than any in the training data.
#pragma once

#include <string>
#include <vector>

#include "metadata.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"
#include "tally.h"

namespace nequip_md {

class Guard {
 public:
    Guard(const Metadata &metadata, bool on) : metadata_(metadata), watching_(on && !metadata.closest_distances.empty())
    {
    }

    // Squares of the distances below which a pair is reported, angstrom^2, [centre type][neighbour type]; empty: none
    // is.
    std::vector<double> shortest() const;

    // Look at an evaluation; the first one that has such a pair is reported: its atoms are set in `results`.
    void look(const Tally &tally, const NeighbourTable &table, nequip_md_results &results);

    const std::string &warning() const { return warning_; }  // of the last look; empty: nothing to report

 private:
    const Metadata &metadata_;
    bool watching_;
    std::string warning_;
};

}  // namespace nequip_md
