// Detects that a run has left the range of the training data: atoms that are closer than any in it.
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

    // Squares of the distances below which a pair is reported, angstrom^2, [centre type][neighbour type]; empty if no
    // pair is ever reported.
    std::vector<double> shortest() const;

    // Checks an evaluation. If it is the first one with such a pair, sets the pair's atoms in `results`.
    void look(const Tally &tally, const NeighbourTable &table, nequip_md_results &results);

    const std::string &warning() const { return warning_; }  // of the last check; empty if there is nothing to report

 private:
    const Metadata &metadata_;
    bool watching_;
    std::string warning_;
};

}  // namespace nequip_md
