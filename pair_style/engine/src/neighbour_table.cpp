#include "neighbour_table.h"

#include <algorithm>
#include <string>

#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include "error.h"

namespace nequip_md {
namespace {

constexpr int64_t GRAIN = 256;  // centres per task

std::string number(int64_t value) { return std::to_string(value); }

void check_system(const nequip_md_system &system, const Metadata &metadata)
{
    const auto require = [](bool given, const char *what) {
        if (!given) throw Error(NEQUIP_MD_BAD_INPUT, std::string("evaluate: ") + what);
    };
    require(system.num_all >= 0 && system.num_centres >= 0 && system.num_centres <= system.num_all,
            "needs 0 <= num_centres <= num_all");
    require(system.num_all == 0 || (system.positions && system.types && system.type_map),
            "positions, types or type_map is NULL");
    require(system.num_centres == 0 || (system.centres && system.num_neighbours && system.neighbours),
            "centres, num_neighbours or neighbours is NULL");
    require(metadata.message_passing_layers == 0 || system.num_all == 0 || system.owner,
            "this model passes messages, so owner must say which centre each atom is a copy of; it is NULL");
}

at::Tensor empty_int(int64_t size) { return at::empty({size}, at::TensorOptions().dtype(at::kInt)); }

}  // namespace

void NeighbourTable::update(const nequip_md_system &system, const Metadata &metadata, const at::Device &device)
{
    check_system(system, metadata);
    if (valid_ && !system.lists_changed && same_atoms(system)) return;
    valid_ = false;
    number_nodes(system, metadata);
    flatten(system, metadata);
    for (at::Tensor *tensor :
         {&node_types, &centre_atom, &centre_node, &neighbour_atom, &neighbour_node, &cutoff_squared})
        *tensor = tensor->to(device);
    valid_ = true;
}

bool NeighbourTable::same_atoms(const nequip_md_system &system) const
{
    return system.num_centres == listed_ && static_cast<size_t>(system.num_all) == caller_types_.size() &&
           std::equal(caller_types_.begin(), caller_types_.end(), system.types);
}

void NeighbourTable::number_nodes(const nequip_md_system &system, const Metadata &metadata)
{
    listed_ = system.num_centres;
    caller_types_.assign(system.types, system.types + system.num_all);
    model_types_.resize(system.num_all);
    for (int atom = 0; atom < system.num_all; ++atom) {
        const int type = caller_types_[atom];
        if (type < 0 || type >= system.num_caller_types)
            throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: type " + number(type) + " lies outside type_map", atom);
        const int mapped = system.type_map[type];
        if (mapped < -1 || mapped >= metadata.num_types())
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "evaluate: type_map holds " + number(mapped) + ", the model has types 0 to " +
                            number(metadata.num_types() - 1),
                        atom);
        model_types_[atom] = mapped;
    }

    node_of_atom_.assign(system.num_all, -1);
    centres_.clear();
    for (int k = 0; k < system.num_centres; ++k) {
        const int atom = system.centres[k];
        if (atom < 0 || atom >= system.num_all || node_of_atom_[atom] >= 0)
            throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: centres[" + number(k) + "] = " + number(atom) +
                                                 " lies outside the atoms or is there twice");
        if (model_types_[atom] < 0) continue;
        node_of_atom_[atom] = static_cast<int>(centres_.size());
        centres_.push_back(atom);
    }

    std::vector<int64_t> types(num_nodes(), 0);
    for (int64_t node = 0; node < num_centres(); ++node) types[node] = model_types_[centres_[node]];
    const bool passes_messages = metadata.message_passing_layers > 0;
    std::vector<int> node_of_centre;
    if (passes_messages) node_of_centre = node_of_atom_;
    for (int atom = 0; atom < system.num_all; ++atom) {
        if (node_of_atom_[atom] >= 0 || model_types_[atom] < 0) continue;
        if (passes_messages) {
            const int owner = system.owner[atom];
            if (owner < 0 || owner >= system.num_all || node_of_centre[owner] < 0)
                throw Error(NEQUIP_MD_BAD_INPUT,
                            "evaluate: owner of an atom is " + number(owner) + ", which is no centre", atom);
            node_of_atom_[atom] = node_of_centre[owner];
        } else {
            node_of_atom_[atom] = static_cast<int>(types.size());
            types.push_back(model_types_[atom]);
        }
    }
    node_types = at::empty({static_cast<int64_t>(types.size())}, at::TensorOptions().dtype(at::kLong));
    std::copy(types.begin(), types.end(), node_types.data_ptr<int64_t>());
}

void NeighbourTable::flatten(const nequip_md_system &system, const Metadata &metadata)
{
    const int mask = system.neighbour_mask ? system.neighbour_mask : ~0;
    const auto neighbour = [&](int centre, int k) {
        const int atom = system.neighbours[centre][k] & mask;
        if (atom < 0 || atom >= system.num_all)
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "evaluate: a neighbour is " + number(atom) + ", which lies outside the atoms", centre);
        return atom;
    };

    std::vector<int64_t> offset(num_centres() + 1, 0);
    at::parallel_for(0, num_centres(), GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t node = begin; node < end; ++node) {
            const int centre = centres_[node];
            for (int k = 0; k < system.num_neighbours[centre]; ++k)
                if (model_types_[neighbour(centre, k)] >= 0) ++offset[node + 1];
        }
    });
    for (int64_t node = 0; node < num_centres(); ++node) offset[node + 1] += offset[node];

    const int64_t candidates = offset.back();
    for (at::Tensor *tensor : {&centre_atom, &centre_node, &neighbour_atom, &neighbour_node})
        *tensor = empty_int(candidates);
    cutoff_squared = at::empty({candidates}, at::TensorOptions().dtype(at::kDouble));
    int *const centre_atoms = centre_atom.data_ptr<int>(), *const centre_nodes = centre_node.data_ptr<int>();
    int *const neighbour_atoms = neighbour_atom.data_ptr<int>(), *const neighbour_nodes =
                                                                     neighbour_node.data_ptr<int>();
    double *const radii = cutoff_squared.data_ptr<double>();
    at::parallel_for(0, num_centres(), GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t node = begin; node < end; ++node) {
            const int centre = centres_[node];
            int64_t slot = offset[node];
            for (int k = 0; k < system.num_neighbours[centre]; ++k) {
                const int atom = neighbour(centre, k);
                if (model_types_[atom] < 0) continue;
                const double radius = metadata.pair_cutoff(model_types_[centre], model_types_[atom]);
                centre_atoms[slot] = centre;
                centre_nodes[slot] = static_cast<int>(node);
                neighbour_atoms[slot] = atom;
                neighbour_nodes[slot] = node_of_atom_[atom];
                radii[slot++] = radius * radius;
            }
        }
    });
}

}  // namespace nequip_md
