#include "guard.h"

#include <cmath>
#include <sstream>

namespace nequip_md {
namespace {

// Distances below this part of the closest one in the training data are reported: long runs at the temperature of the
// training data come a little closer than that.
constexpr double CLOSE = 0.9;

}  // namespace

std::vector<double> Guard::shortest() const
{
    std::vector<double> squares;
    if (!watching_) return squares;
    for (const double distance : metadata_.closest_distances) squares.push_back(CLOSE * CLOSE * distance * distance);
    return squares;
}

// The device has counted such edges; which they are is looked up here, once.
void Guard::look(const Tally &tally, const NeighbourTable &table, const nequip_md_system &system,
                 nequip_md_results &results)
{
    warning_.clear();
    results.warned_atom = results.warned_neighbour = -1;
    if (!watching_ || !tally.has_close()) return;
    const int centre = table.centres()[tally.close_centre()];
    const auto type = [&](int atom) { return system.type_map[system.types[atom]]; };
    const double *const x = system.positions;
    const auto known = [&](int atom) {
        return metadata_.closest_distances[type(centre) * metadata_.num_types() + type(atom)];
    };
    const auto distance = [&](int atom) {
        return std::hypot(x[3 * atom] - x[3 * centre], x[3 * atom + 1] - x[3 * centre + 1],
                          x[3 * atom + 2] - x[3 * centre + 2]);
    };
    int worst = -1;
    double ratio = 1;
    for (int atom = 0; atom < system.num_all; ++atom) {
        if (atom == centre || type(atom) < 0 || distance(atom) >= ratio * known(atom)) continue;
        ratio = distance(atom) / known(atom);
        worst = atom;
    }
    if (worst < 0) return;
    std::ostringstream sentence;
    sentence.precision(3);
    sentence << "atoms of types " << metadata_.type_names[type(centre)] << " and " << metadata_.type_names[type(worst)]
             << " are " << distance(worst) << " angstrom apart, the closest ones in the training data " << known(worst)
             << "; the model does not know such a contact, its forces there may be wrong";
    warning_ = sentence.str();
    results.warned_atom = centre;
    results.warned_neighbour = worst;
    watching_ = false;
}

}  // namespace nequip_md
