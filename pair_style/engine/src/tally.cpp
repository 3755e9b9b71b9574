#include "tally.h"

#include <array>
#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "error.h"

namespace nequip_md {
namespace {

// Row-major components of a 3x3 tensor in the order that the header names.
const std::array<int64_t, 9> COMPONENTS = {0, 4, 8, 1, 2, 5, 3, 6, 7};  // xx yy zz xy xz yz yx zx zy

at::Tensor to_host(const at::Tensor &tensor) { return tensor.to(at::kCPU).contiguous(); }

void add_to(double *array, const at::Tensor &values, double factor)
{
    const at::Tensor host = to_host(values);
    const double *const data = host.data_ptr<double>();
    for (int64_t k = 0; k < host.numel(); ++k) array[k] += factor * data[k];
}

void add_energies(const NeighbourTable &table, const at::Tensor &node_energy, double factor, nequip_md_results &results)
{
    const at::Tensor host = to_host(node_energy);
    const double *const energy = host.data_ptr<double>();
    double sum = 0;
    for (int64_t node = 0; node < table.num_centres(); ++node) {
        const int atom = table.centres()[node];
        if (!std::isfinite(energy[node]))
            throw Error(NEQUIP_MD_BAD_RESULT,
                        "the model's energy of an atom is not finite; look for atoms on top of each other, or "
                        "a configuration far from the training data",
                        atom);
        sum += energy[node];
        if (results.atom_energies) results.atom_energies[atom] += factor * energy[node];
    }
    results.energy = factor * sum;
}

void add_forces(const Graph &graph, const at::Tensor &gradient, int64_t num_all, double factor,
                nequip_md_results &results)
{
    at::Tensor forces = at::zeros({num_all, 3}, gradient.options());
    forces.index_add_(0, graph.centre_atom, gradient);
    forces.index_add_(0, graph.neighbour_atom, gradient, -1);
    forces = to_host(forces);
    const double *const force = forces.data_ptr<double>();
    for (int64_t k = 0; k < 3 * num_all; ++k)
        if (!std::isfinite(force[k]))
            throw Error(NEQUIP_MD_BAD_RESULT,
                        "the model's force on an atom is not finite; look for atoms on top of each other, or a "
                        "configuration far from the training data",
                        static_cast<int>(k / 3));
    add_to(results.forces, forces, factor);
}

// The total is symmetric by rotational invariance, the share of one edge is not.
at::Tensor symmetric_six(const at::Tensor &nine)
{
    at::Tensor six = nine.narrow(-1, 0, 6).clone();
    six.narrow(-1, 3, 3).add_(nine.narrow(-1, 6, 3)).mul_(0.5);
    return six;
}

void add_virials(const Graph &graph, const at::Tensor &gradient, int64_t num_all, double factor,
                 nequip_md_results &results)
{
    const at::Tensor vectors = graph.edge_vectors.narrow(0, 0, graph.num_real_edges);
    const at::Tensor order = at::tensor(at::ArrayRef<int64_t>(COMPONENTS), gradient.options().dtype(at::kLong));
    const at::Tensor total = at::mm(vectors.t(), gradient).neg().reshape({9}).index_select(0, order);
    for (double &component : results.virial) component = 0;
    add_to(results.virial, symmetric_six(total), factor);
    if (!results.atom_virials && !results.centroid_virials) return;

    const at::Tensor edges =
        (vectors.unsqueeze(2) * gradient.unsqueeze(1)).neg().reshape({-1, 9}).index_select(1, order);
    if (results.atom_virials) {
        const at::Tensor half = symmetric_six(edges).mul_(0.5);
        at::Tensor shares = at::zeros({num_all, 6}, gradient.options());
        shares.index_add_(0, graph.centre_atom, half);
        shares.index_add_(0, graph.neighbour_atom, half);
        add_to(results.atom_virials, shares, factor);
    }
    if (results.centroid_virials) {
        at::Tensor shares = at::zeros({num_all, 9}, gradient.options());
        shares.index_add_(0, graph.neighbour_atom, edges);
        add_to(results.centroid_virials, shares, factor);
    }
}

}  // namespace

void tally(const NeighbourTable &table, const Graph &graph, const Evaluation &evaluation, int64_t num_all,
           double energy_factor, nequip_md_results &results)
{
    add_energies(table, evaluation.node_energy, energy_factor, results);
    add_forces(graph, evaluation.edge_gradient, num_all, energy_factor, results);
    add_virials(graph, evaluation.edge_gradient, num_all, energy_factor, results);
}

}  // namespace nequip_md
