// From per-edge gradients to what an MD engine wants: forces, virials, per-atom shares.
#pragma once

#include <ATen/core/Tensor.h>

#include "compute.h"
#include "graph.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"
#include "network.h"

namespace nequip_md {

// Sums over the edges of one configuration, on the device.
//
// With g the gradient of edge i -> j: F_i += g, F_j -= g, virial -= r (x) g. Sums are in fixed point (kernels.h), so
// that they come out the same in any order; with `wide` they are floating-point numbers, for forces that exceed that
// range.
class Tally {
 public:
    // Which shares of atoms are wanted beside forces and energies.
    struct Wanted {
        bool atom_virials, centroid_virials;
        bool operator==(const Wanted &) const = default;
    };

    Tally(const Compute &compute, int64_t num_centres, int64_t num_atoms, const Wanted &wanted, bool wide);

    void clear();  // sums of centres are written anew
    void add(const NeighbourTable &table, const at::Tensor &edge_offset, const Graph &graph,
             const Evaluation &evaluation);
    void finish();  // after the last add()

    // What of the sums is brought to the host, beside the total.
    struct Fetched {
        bool atom_energies, arrays;  // arrays: forces and virials of atoms
    };

    // Bring sums to the host, and wait for them. False: forces exceed the range of fixed point, so do it again, wide.
    bool fetch(int64_t num_atoms, const Fetched &fetched);

    int64_t num_edges() const;     // fetched
    bool has_close() const;        // fetched; whether an edge is shorter than those that the model knows
    int64_t close_centre() const;  // a centre of such an edge

    // Add what was fetched to the results. Throws Error (BAD_RESULT) for values that are not finite.
    void add_to(const NeighbourTable &table, double energy_factor, nequip_md_results &results) const;

    // The same where the arrays of the results lie on the GPU: there, in the order of the stream.
    void add_on_gpu(const NeighbourTable &table, double energy_factor, nequip_md_results &results) const;

 private:
    void set_total(double energy_factor, nequip_md_results &results) const;
    void add_array(double *array, const at::Tensor &values, double factor) const;
    void check_finite(const NeighbourTable &table) const;

    const Compute &compute_;
    Wanted wanted_;
    bool wide_;
    bool have_energies_ = false;               // of atoms, on the host
    at::Tensor forces_, virials_, centroids_;  // [atoms, 3], [atoms, 6], [atoms, 9], int64 or float64
    at::Tensor sums_, total_;                  // [centres, SUMS], [SUMS] float64
    at::Tensor host_forces_, host_virials_, host_centroids_, host_sums_, host_total_;
};

}  // namespace nequip_md
