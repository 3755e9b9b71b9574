#include "tally.h"

#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "caller_array.h"
#include "error.h"

namespace nequip_md {
namespace {

enum Sum { VIRIAL = 0, ENERGY = 6, TOO_LARGE = 7, EDGES = 8, CLOSE = 9 };

}  // namespace

Tally::Tally(const Compute &compute, int64_t num_centres, int64_t num_atoms, const Wanted &wanted, bool wide)
    : compute_(compute), wanted_(wanted), wide_(wide)
{
    const at::TensorOptions numbers = wide ? compute.doubles() : compute.integers();
    forces_ = at::zeros({num_atoms, 3}, numbers);
    if (wanted.atom_virials) virials_ = at::zeros({num_atoms, 6}, numbers);
    if (wanted.centroid_virials) centroids_ = at::zeros({num_atoms, 9}, numbers);
    sums_ = at::zeros({num_centres, SUMS}, compute.doubles());
}

void Tally::clear()
{
    for (at::Tensor *tensor : {&forces_, &virials_, &centroids_})
        if (tensor->defined()) tensor->zero_();
}

void Tally::add(const NeighbourTable &table, const at::Tensor &edge_offset, const Graph &graph,
                const Evaluation &evaluation)
{
    TallyArguments a{};
    a.row_ptr = longs(graph.row_ptr);
    a.edge_offset = longs(edge_offset);
    a.vectors = graph.edge_vectors.data_ptr<double>();
    a.gradient = evaluation.edge_gradient.data_ptr<double>();
    a.node_energy = evaluation.node_energy.data_ptr<double>();
    a.neighbour_atom = graph.neighbour_atom.data_ptr<int>();
    a.atoms = table.atoms();
    a.first = graph.first;
    a.forces = forces_.data_ptr();
    a.virials = virials_.defined() ? virials_.data_ptr() : nullptr;
    a.centroids = centroids_.defined() ? centroids_.data_ptr() : nullptr;
    a.sums = sums_.data_ptr<double>();
    if (wide_)
        NEQUIP_MD_RUN(compute_, tally_double, a, graph.count);
    else
        NEQUIP_MD_RUN(compute_, tally_fixed, a, graph.count);
}

void Tally::finish() { total_ = sums_.sum(0); }

bool Tally::fetch(int64_t num_atoms, const Fetched &fetched)
{
    const auto bring = [&](at::Tensor &host, const at::Tensor &here) {
        if (!compute_.gpu()) {
            host = here;
            return;
        }
        if (!host.defined() || host.sizes() != here.sizes() || host.scalar_type() != here.scalar_type())
            host = at::empty(here.sizes(), at::TensorOptions().dtype(here.scalar_type()).pinned_memory(true));
        host.copy_(here, /*non_blocking=*/true);
    };
    bring(host_total_, total_);
    if (wide_ || fetched.arrays) bring(host_forces_, forces_.narrow(0, 0, num_atoms));
    if (fetched.arrays && virials_.defined()) bring(host_virials_, virials_.narrow(0, 0, num_atoms));
    if (fetched.arrays && centroids_.defined()) bring(host_centroids_, centroids_.narrow(0, 0, num_atoms));
    have_energies_ = wide_ || (fetched.arrays && fetched.atom_energies);
    if (have_energies_) bring(host_sums_, sums_);
    if (compute_.gpu()) compute_.gpu()->synchronize();
    const double *const total = host_total_.data_ptr<double>();
    return wide_ || (total[TOO_LARGE] == 0 && std::isfinite(total[ENERGY]));
}

int64_t Tally::num_edges() const { return static_cast<int64_t>(host_total_.data_ptr<double>()[EDGES]); }

bool Tally::has_close() const { return host_total_.data_ptr<double>()[CLOSE] > 0; }

int64_t Tally::close_centre() const { return sums_.select(1, CLOSE).argmax().item<int64_t>(); }

void Tally::add_array(double *array, const at::Tensor &values, double factor) const
{
    const int64_t count = values.numel();
    if (wide_) {
        const double *const numbers = values.data_ptr<double>();
        for (int64_t k = 0; k < count; ++k) array[k] += factor * numbers[k];
    } else {
        const int64_t *const numbers = values.data_ptr<int64_t>();
        factor /= UNITS;
        for (int64_t k = 0; k < count; ++k) array[k] += factor * static_cast<double>(numbers[k]);
    }
}

void Tally::check_finite(const NeighbourTable &table) const
{
    const double *const sums = host_sums_.data_ptr<double>();
    for (int64_t node = 0; node < table.num_centres(); ++node)
        if (!std::isfinite(sums[SUMS * node + ENERGY]))
            throw Error(NEQUIP_MD_BAD_RESULT,
                        "the model's energy of an atom is not finite; look for atoms on top of each other, or "
                        "a configuration far from the training data",
                        table.centres()[node]);
    const double *const force = host_forces_.data_ptr<double>();
    for (int64_t k = 0; k < host_forces_.numel(); ++k)
        if (!std::isfinite(force[k]))
            throw Error(NEQUIP_MD_BAD_RESULT,
                        "the model's force on an atom is not finite; look for atoms on top of each other, or a "
                        "configuration far from the training data",
                        static_cast<int>(k / 3));
}

void Tally::set_total(double energy_factor, nequip_md_results &results) const
{
    const double *const total = host_total_.data_ptr<double>();
    results.energy = energy_factor * total[ENERGY];
    for (int k = 0; k < 6; ++k) results.virial[k] = energy_factor * total[VIRIAL + k];
}

void Tally::add_on_gpu(const NeighbourTable &table, double energy_factor, nequip_md_results &results) const
{
    if (wide_) check_finite(table);
    set_total(energy_factor, results);
    const auto add = [&](double *array, const at::Tensor &values, const char *name) {
        const at::Tensor here = values.narrow(0, 0, table.num_atoms());
        caller_array(compute_, /*on_gpu=*/true, array, here.sizes(), name)
            .add_(here.to(at::kDouble), wide_ ? energy_factor : energy_factor / UNITS);
    };
    add(results.forces, forces_, "forces");
    if (wanted_.atom_virials) add(results.atom_virials, virials_, "atom_virials");
    if (wanted_.centroid_virials) add(results.centroid_virials, centroids_, "centroid_virials");
    if (results.atom_energies)
        caller_array(compute_, /*on_gpu=*/true, results.atom_energies, {table.num_atoms()}, "atom_energies")
            .index_add_(0, table.centre_atoms(), sums_.select(1, ENERGY).narrow(0, 0, table.num_centres()),
                        energy_factor);
}

void Tally::add_to(const NeighbourTable &table, double energy_factor, nequip_md_results &results) const
{
    if (wide_) check_finite(table);  // values that are not finite exceed fixed point, so only wide sums can have them
    set_total(energy_factor, results);
    add_array(results.forces, host_forces_, energy_factor);
    if (wanted_.atom_virials) add_array(results.atom_virials, host_virials_, energy_factor);
    if (wanted_.centroid_virials) add_array(results.centroid_virials, host_centroids_, energy_factor);
    if (results.atom_energies)
        for (int64_t node = 0; node < table.num_centres(); ++node)
            results.atom_energies[table.centres()[node]] +=
                energy_factor * host_sums_.data_ptr<double>()[SUMS * node + ENERGY];
}

}  // namespace nequip_md
