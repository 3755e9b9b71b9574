// Metadata of an artifact: text keys and values, parsed into the values that the engine uses.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

namespace nequip_md {

struct Metadata {
    std::unordered_map<std::string, std::string> text;  // all keys and values of the file

    std::vector<std::string> type_names;
    double cutoff;                     // angstrom
    std::vector<double> pair_cutoffs;  // [centre type][neighbour type], angstrom
    std::string precision;             // "fp64", "fp32" or "tf32"
    std::string device;                // "cpu" or "cuda"
    std::string torch_version;         // release, without local part
    int message_passing_layers;
    int networks;  // in the artifact; a committee has several
    bool ghosts;   // whether nodes of the graph may be ghosts
    std::vector<double>
        closest_distances;  // [type][type], angstrom, of the training data, 0 where unknown; may be empty

    int num_types() const { return static_cast<int>(type_names.size()); }
    double pair_cutoff(int centre, int neighbour) const { return pair_cutoffs[centre * num_types() + neighbour]; }
};

// Parses the keys of an artifact. `path` is for messages only.
// Throws Error (BAD_MODEL) for another format version, and for a key that is missing or malformed.
Metadata parse_metadata(const std::string &path, std::unordered_map<std::string, std::string> text);

}  // namespace nequip_md
