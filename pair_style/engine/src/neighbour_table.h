// The caller's neighbour lists as flat arrays on the device: all that stays the same until the lists are rebuilt.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "metadata.h"
#include "nequip_md_engine.h"

namespace nequip_md {

// Nodes are numbered: centres in the caller's order, then PHANTOMS, then the other atoms. Phantoms have no counterpart
// among the atoms. They carry the padding edges, and being always there they spare every other part of the code a
// special case.
constexpr int64_t PHANTOMS = 2;

class NeighbourTable {
 public:
    // Bring the table up to date. It is rebuilt when the caller says that the lists have changed, and whenever the
    // types or the counts differ from last time: programs that swap types do so without rebuilding neighbour lists.
    // Throws Error (BAD_INPUT) for indices and types out of range.
    void update(const nequip_md_system &system, const Metadata &metadata, const at::Device &device);

    int64_t num_centres() const { return static_cast<int64_t>(centres_.size()); }
    int64_t num_nodes() const { return num_centres() + PHANTOMS; }  // without the other atoms
    const std::vector<int> &centres() const
    {
        return centres_;
    }  // atoms, in node order; those of unmapped types left out

    at::Tensor node_types;      // [N + PHANTOMS + others] int64, model types
    at::Tensor centre_atom;     // [P] int32, of each candidate edge, ascending by centre node
    at::Tensor centre_node;     // [P] int32
    at::Tensor neighbour_atom;  // [P] int32
    at::Tensor neighbour_node;  // [P] int32
    at::Tensor cutoff_squared;  // [P] float64, by the ordered pair of types

 private:
    bool same_atoms(const nequip_md_system &system) const;
    void number_nodes(const nequip_md_system &system, const Metadata &metadata);
    void flatten(const nequip_md_system &system, const Metadata &metadata);

    bool valid_ = false;
    int listed_ = 0;                 // num_centres of the caller
    std::vector<int> caller_types_;  // [num_all]
    std::vector<int> model_types_;   // [num_all], -1: not in the model
    std::vector<int> node_of_atom_;  // [num_all], -1: not in the model
    std::vector<int> centres_;
};

}  // namespace nequip_md
