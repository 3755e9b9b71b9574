#include "guard.h"

#include <cmath>
#include <sstream>

namespace nequip_md {
namespace {

// Distances below this fraction of the closest one in the training data are reported. It is less than 1, since long
// runs at the temperature of the training data come a little closer.
constexpr double NARROW = 0.9;

}  // namespace

std::vector<double> Guard::shortest() const
{
    std::vector<double> squares;
    if (!watching_) return squares;
    for (const double distance : metadata_.closest_distances) squares.push_back(NARROW * NARROW * distance * distance);
    return squares;
}

// The device only counts such edges, so the atoms are found here, once.
void Guard::look(const Tally &tally, const NeighbourTable &table, nequip_md_results &results)
{
    warning_.clear();
    results.warned_atom = results.warned_neighbour = -1;
    if (!watching_ || !tally.has_close()) return;
    const int centre = table.centres()[tally.close_centre()];
    const at::Tensor positions = table.host_positions();
    const double *const x = positions.data_ptr<double>();
    const auto known = [&](int64_t other) {
        return metadata_.closest_distances[table.type(centre) * metadata_.num_types() + table.type(other)];
    };
    const auto distance = [&](int64_t other) {
        return std::hypot(x[3 * other] - x[3 * centre], x[3 * other + 1] - x[3 * centre + 1],
                          x[3 * other + 2] - x[3 * centre + 2]);
    };
    int64_t worst = -1;
    double ratio = 1;
    for (int64_t other = 0; other < table.num_positions(); ++other) {
        if (other == centre || table.type(other) < 0 || distance(other) >= ratio * known(other)) continue;
        ratio = distance(other) / known(other);
        worst = other;
    }
    if (worst < 0) return;
    std::ostringstream sentence;
    sentence.precision(3);
    sentence << "atoms of types " << metadata_.type_names[table.type(centre)] << " and "
             << metadata_.type_names[table.type(worst)] << " are " << distance(worst)
             << " angstrom apart, the closest ones in the training data " << known(worst)
             << "; the model does not know such a contact, its forces there may be wrong";
    warning_ = sentence.str();
    results.warned_atom = centre;
    results.warned_neighbour = table.atom(worst);
    watching_ = false;
}

}  // namespace nequip_md
