// The caller's atoms and their possible neighbours, on the device: all that stays the same until lists are rebuilt, and
// the positions of each step.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "compute.h"
#include "metadata.h"
#include "nequip_md_engine.h"
#include "periodic_images.h"

namespace nequip_md {

// Nodes of a graph are numbered: centres in the caller's order, at least so many phantoms, then ghosts. These are all
// of the caller's atoms for models without message passing; for models with it there are none, or those atoms that are
// no centres if the caller exchanges their features. Phantoms have no counterpart among the atoms. They carry the
// padding edges, and being always there they spare every other part of the code a special case.
constexpr int64_t MIN_PHANTOMS = 2;

class NeighbourTable {
 public:
    // shortest: angstrom^2, [centre type][neighbour type], see Atoms; may be empty.
    NeighbourTable(const Compute &compute, const Metadata &metadata, const std::vector<double> &shortest);

    // Bring table and positions up to date. The table is made anew when the caller says that the lists have changed,
    // and whenever the types, the counts or the kind of boundaries differ from last time: programs that swap types do
    // so without rebuilding neighbour lists. Throws Error (BAD_INPUT) for indices, types, cells and positions that
    // cannot be.
    void update(const nequip_md_system &system);

    int64_t num_atoms() const { return static_cast<int64_t>(caller_types_.size()); }
    int64_t num_positions() const { return num_atoms() + num_images_; }  // those of atoms come first
    int64_t num_centres() const { return static_cast<int64_t>(numbers_.centres.size()); }
    const std::vector<int> &centres() const { return numbers_.centres; }  // atoms; those of unmapped types left out
    int64_t num_candidates() const { return num_candidates_; }
    int64_t num_numberings() const { return num_numberings_; }  // how often nodes or their types have changed

    // Arrays have room for more than there is, so that they can stay where they are: this counts how often one moved.
    int64_t num_moves() const { return num_moves_; }
    int64_t centre_capacity() const { return centre_atom_.numel(); }
    int64_t atom_capacity() const { return type_.numel(); }

    Atoms atoms() const;              // arrays on the device
    EdgeArguments arguments() const;  // with the table's part filled in

    at::Tensor centre_atoms() const { return centre_atom_.narrow(0, 0, num_centres()); }  // on the device

    // Of one position: the atom that is there, itself or as an image, and its type.
    int atom(int64_t position) const;
    int type(int64_t position) const { return numbers_.types[atom(position)]; }
    at::Tensor host_positions() const;  // [positions, 3]

    // Types of the nodes of a graph: the centres from `first` on, phantoms up to `num_nodes`, and the ghosts.
    at::Tensor node_types(int64_t first, int64_t count, int64_t num_nodes, int64_t num_atoms) const;

 private:
    // What stays the same as long as the atoms are the same ones. Lists are often rebuilt for these.
    struct Numbering {
        std::vector<int> types;             // [atoms], of the model; -1: not in the model
        std::vector<int> centres;           // [centres], atoms
        std::vector<int64_t> node_of_atom;  // [atoms], of models with message passing
        std::vector<int> ghosts;            // [ghosts], atoms, where their features are exchanged
        Images images;                      // where the caller gives a cell
        bool operator==(const Numbering &) const = default;
    };

    // What the caller gives, as a tensor where it lies.
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
