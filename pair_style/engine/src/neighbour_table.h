// The caller's atoms and their possible neighbours on the device. Positions change in every step, everything else when
// lists are rebuilt.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "compute.h"
#include "metadata.h"
#include "nequip_md_engine.h"
#include "periodic_images.h"

namespace nequip_md {

// Nodes of a graph are the centres in the caller's order, then phantoms, then ghosts. Without message passing, all of
// the caller's atoms are ghosts. With message passing, the atoms that are no centres are ghosts if the caller exchanges
// their features, otherwise there are none. Phantoms correspond to no atom; padding edges belong to them. There are
// always at least MIN_PHANTOMS, so that no other code needs a special case.
constexpr int64_t MIN_PHANTOMS = 2;

class NeighbourTable {
 public:
    // shortest: angstrom^2, [centre type][neighbour type], see Atoms; may be empty.
    NeighbourTable(const Compute &compute, const Metadata &metadata, const std::vector<double> &shortest);

    // Updates table and positions. The table is rebuilt when the caller says that the lists have changed, and whenever
    // types, counts or the kind of boundaries differ from the previous call, since programs that swap types may not
    // rebuild their lists. Throws Error (BAD_INPUT) for invalid indices, types, cells and positions.
    void update(const nequip_md_system &system);

    int64_t num_atoms() const { return static_cast<int64_t>(caller_types_.size()); }
    int64_t num_positions() const { return num_atoms() + num_images_; }  // those of atoms come first
    int64_t num_centres() const { return static_cast<int64_t>(numbers_.centres.size()); }
    const std::vector<int> &centres() const { return numbers_.centres; }  // atoms; those of unmapped types left out
    int64_t num_candidates() const { return num_candidates_; }
    int64_t num_numberings() const
    {
        return num_numberings_;
    }  // number of times that nodes or their types have changed

    // Number of times that an array was reallocated. Arrays have spare room, so that this is rare.
    int64_t num_moves() const { return num_moves_; }
    int64_t centre_capacity() const { return centre_atom_.numel(); }
    int64_t atom_capacity() const { return type_.numel(); }

    Atoms atoms() const;              // arrays on the device
    EdgeArguments arguments() const;  // with the table's part filled in

    at::Tensor centre_atoms() const { return centre_atom_.narrow(0, 0, num_centres()); }  // on the device

    // The node of an atom where features are exchanged, -1 for centres outside the model; and whether it is a centre.
    int64_t row(int atom) const { return numbers_.node_of_atom[atom]; }
    bool is_centre(int atom) const { return row(atom) < num_centres() + MIN_PHANTOMS; }

    // The atom at a position, either itself or its image, and its type.
    int atom(int64_t position) const;
    int type(int64_t position) const { return numbers_.types[atom(position)]; }
    at::Tensor host_positions() const;  // [positions, 3]

    // Types of the nodes of a graph: `count` centres from `first` on, phantoms up to `num_nodes`, then ghosts.
    at::Tensor node_types(int64_t first, int64_t count, int64_t num_nodes, int64_t num_atoms) const;

 private:
    // Data that depends only on which atoms there are. It often stays the same when lists are rebuilt.
    struct Numbering {
        std::vector<int> types;             // [atoms], of the model; -1: not in the model
        std::vector<int> centres;           // [centres], atoms
        std::vector<int64_t> node_of_atom;  // [atoms], of models with message passing
        std::vector<int> ghosts;            // [ghosts], atoms, where their features are exchanged
        Images images;                      // where the caller gives a cell
        bool operator==(const Numbering &) const = default;
    };

    // The caller's arrays as tensors.
    at::Tensor given_positions(const nequip_md_system &system) const;
    at::Tensor given_types(const nequip_md_system &system) const;

    void check_positions(const at::Tensor &given) const;
    bool same_atoms(const nequip_md_system &system) const;
    void upload_positions(const nequip_md_system &system, const Lattice *lattice);
    void number_nodes(const nequip_md_system &system, const Lattice *lattice);
    void upload(Numbering numbers, bool periodic);
    void copy_lists(const nequip_md_system &system);
    void search(const nequip_md_system &system);
    void reserve_list(int64_t candidates);
    void reserve(at::Tensor &tensor, int64_t size, const at::TensorOptions &options, at::IntArrayRef rest = {});

    const Compute &compute_;
    const Metadata &metadata_;
    bool valid_ = false, uploaded_ = false;  // the table; its numbering
    struct Kind {                            // what decides how nodes are numbered, beside the atoms
        int num_centres = 0;
        bool periodic[3] = {}, has_cell = false, exchange = false;
        bool operator==(const Kind &) const = default;
    };
    Kind kind(const nequip_md_system &system) const;
    Kind kind_;
    std::vector<int> caller_types_;  // [atoms]
    Numbering numbers_;
    int64_t num_images_ = 0, num_candidates_ = 0, num_numberings_ = 0, num_moves_ = 0;

    at::Tensor staged_;        // [atoms, 3], pinned host memory, GPU only
    at::Tensor given_;         // [atoms, 3] float64, where images are made of them on a GPU
    at::Tensor placed_;        // [positions, 3] float64
    at::Tensor positions_;     // this, or the caller's array
    at::Tensor caller_type_;   // [atoms] int32, where the caller's arrays lie on the GPU
    at::Tensor type_;          // [positions] int64
    at::Tensor image_atom_;    // [positions] int32, where there is a cell
    at::Tensor image_shift_;   // [positions, 3] int32
    at::Tensor centre_atom_;   // [centres] int32
    at::Tensor num_centres_;   // [1] int64
    at::Tensor cutoff_;        // [types, types] float64
    at::Tensor shortest_;      // [types, types] float64, or undefined
    at::Tensor list_offset_;   // [centres + 1] int64
    at::Tensor list_;          // [candidates] int32
    at::Tensor node_of_atom_;  // [atoms] int64, of models with message passing
    at::Tensor ghost_atom_;    // [ghosts] int64, of those whose features are exchanged
};

}  // namespace nequip_md
