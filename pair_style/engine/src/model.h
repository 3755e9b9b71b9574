// A loaded potential: metadata, compiled network, the caller's atoms, and their evaluation.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "compute.h"
#include "guard.h"
#include "metadata.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"
#include "network.h"
#include "package.h"
#include "pieces.h"
#include "replay.h"

namespace nequip_md {

class Model {
 public:
    Model(const std::string &path, const nequip_md_options &options);

    const Metadata &metadata() const { return metadata_; }
    void evaluate(const nequip_md_system &system, nequip_md_results &results);
    const std::string &warning() const { return guard_.warning(); }  // of the last evaluation; or empty

    // Energy of an atom without neighbours for each type, in the unit of the results; evaluated once.
    const std::vector<double> &isolated_energies();

 private:
    Model(const Package &package, const nequip_md_options &options);

    struct Request {
        Tally::Wanted wanted;
        Tally::Fetched fetched;
        bool replay;  // whether a recording may be replayed, or made
    };
    const Tally &evaluate_table(const Request &request, nequip_md_results &results);
    void check_exchange();

    Metadata metadata_;
    Compute compute_;
    int num_threads_;
    double energy_factor_;
    bool may_replay_;
    Network network_;
    Guard guard_;
    NeighbourTable table_;
    Pieces pieces_;
    Replay replay_;
    std::optional<Tally> tally_;  // of the last evaluation that was not replayed
    std::vector<double> isolated_energies_;
};

}  // namespace nequip_md
