// Sums of edge gradients that an MD engine needs: forces, virials, per-atom energies and virials.
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
// With g the gradient of edge i -> j: F_i += g, F_j -= g, virial -= r (x) g. Sums are fixed-point numbers (kernels.h),
// so they do not depend on the order of additions. With `wide` they are floating-point numbers, for forces beyond the
// range of fixed point.
class Tally {
 public:
    // Per-atom results to compute besides forces and energies.
    struct Wanted {
        bool atom_virials, centroid_virials;
        bool operator==(const Wanted &) const = default;
    };

    Tally(const Compute &compute, int64_t num_centres, int64_t num_atoms, const Wanted &wanted, bool wide);

    void clear();  // sums of centres are overwritten, so they need not be cleared
    void add(const NeighbourTable &table, const at::Tensor &edge_offset, const Graph &graph,
             const Evaluation &evaluation);
    void finish();  // after the last add()

    // Sums to copy to the host besides the total.
    struct Fetched {
        bool atom_energies, arrays;  // arrays: forces and virials of atoms
    };

    // Copies sums to the host and waits for them. Returns false if forces exceed the range of fixed point, so that the
    // evaluation must be repeated with `wide`.
    bool fetch(int64_t num_atoms, const Fetched &fetched);

    int64_t num_edges() const;     // fetched
    bool has_close() const;        // fetched; whether an edge is shorter than those in the training data
    int64_t close_centre() const;  // a centre of such an edge

    // Adds the fetched sums to the results. Throws Error (BAD_RESULT) for values that are not finite.
    void add_to(const NeighbourTable &table, double energy_factor, nequip_md_results &results) const;

    // The same for results whose arrays are on the GPU: adds the sums there, in the order of the stream.
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
