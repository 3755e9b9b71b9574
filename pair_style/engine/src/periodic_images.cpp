#include "periodic_images.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "error.h"

namespace nequip_md {
namespace {

constexpr double FLAT = 1e-6;     // a volume counts as zero if it is smaller than this times the product of the lengths
constexpr double FARTHEST = 1e9;  // cells; an atom farther away has less than seven digits of precision within the cell
constexpr double MOST_IMAGES = 2e8;  // about 10 GB
constexpr double MARGIN = 1e-6;      // angstrom, for rounding

double dot(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

double length(const double *a) { return std::sqrt(dot(a, a)); }

void cross(const double *a, const double *b, double *result)
{
    for (int k = 0; k < 3; ++k) result[k] = a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3];
}

void normalize(double *a)
{
    const double size = length(a);
    for (int k = 0; k < 3; ++k) a[k] /= size;
}

// Replaces vectors that are not periodic by vectors of length 1 that are orthogonal to the others. Returns the volume
// of all three; 0 if the periodic vectors are linearly dependent.
double complete(const bool *periodic, double (*basis)[3])
{
    const int count = periodic[0] + periodic[1] + periodic[2];
    if (count == 0)
        for (int axis = 0; axis < 3; ++axis) basis[axis][axis] = 1;
    if (count == 1) {
        const auto given = static_cast<int>(std::find(periodic, periodic + 3, true) - periodic);
        const double *const along = basis[given];
        if (length(along) == 0) return 0;
        double other[3] = {0, 0, 0};
        other[std::min_element(along, along + 3, [](double a, double b) { return std::fabs(a) < std::fabs(b); }) -
              along] = 1;
        cross(along, other, basis[(given + 1) % 3]);
        normalize(basis[(given + 1) % 3]);
        cross(along, basis[(given + 1) % 3], basis[(given + 2) % 3]);
        normalize(basis[(given + 2) % 3]);
    }
    if (count == 2) {
        const auto missing = static_cast<int>(std::find(periodic, periodic + 3, false) - periodic);
        double *const normal = basis[missing];
        cross(basis[(missing + 1) % 3], basis[(missing + 2) % 3], normal);
        if (length(normal) == 0) return 0;
        normalize(normal);
    }
    double normal[3];
    cross(basis[1], basis[2], normal);
    return dot(basis[0], normal);
}

}  // namespace

Lattice::Lattice(const double *cell, const int *periodic)
{
    double basis[3][3] = {};
    for (int axis = 0; axis < 3; ++axis) {
        periodic_[axis] = periodic[axis] != 0;
        for (int k = 0; k < 3; ++k) {
            const double value = vectors_[3 * axis + k] = periodic_[axis] ? cell[3 * axis + k] : 0;
            basis[axis][k] = value;
            if (!std::isfinite(value))
                throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: cell vector " + std::to_string(axis) +
                                                     " is not finite; give lattice vectors in angstrom, or set "
                                                     "periodic to 0 along it");
        }
    }
    const double volume = complete(periodic_, basis);
    if (!(std::fabs(volume) > FLAT * length(basis[0]) * length(basis[1]) * length(basis[2])) || !std::isfinite(volume))
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "evaluate: the cell has no volume, as vectors of periodic directions are zero or lie in one plane; "
                    "give the lattice vectors as rows, in angstrom, or set periodic to 0 along directions without");
    for (int axis = 0; axis < 3; ++axis) {
        double *const row = reciprocal_ + 3 * axis;
        cross(basis[(axis + 1) % 3], basis[(axis + 2) % 3], row);
        for (int k = 0; k < 3; ++k) row[k] /= volume;
    }
}

double Lattice::fraction(int axis, const double *point) const { return dot(reciprocal_ + 3 * axis, point); }

double Lattice::steepness(int axis) const { return length(reciprocal_ + 3 * axis); }

Images make_images(const Lattice &lattice, const double *positions, const std::vector<int> &types, double reach)
{
    const auto num_atoms = static_cast<int>(types.size());
    std::vector<int> home(3 * types.size(), 0);            // lattice vectors that move an atom into the cell
    std::vector<double> fractions(3 * types.size(), 0.0);  // its coordinates there
    double low[3], high[3];                                // their extremes
    for (int axis = 0; axis < 3; ++axis) {
        low[axis] = std::numeric_limits<double>::infinity();
        high[axis] = -low[axis];
        if (!lattice.periodic(axis)) continue;
        for (int atom = 0; atom < num_atoms; ++atom) {
            const double fraction = lattice.fraction(axis, positions + 3 * atom), cells = std::floor(fraction);
            if (!(std::fabs(cells) < FARTHEST))
                throw Error(NEQUIP_MD_BAD_INPUT,
                            "evaluate: an atom is more than 1e9 cells away from the cell; check its position and the "
                            "cell",
                            atom);
            home[3 * atom + axis] = -static_cast<int>(cells);
            fractions[3 * atom + axis] = fraction - cells;
            if (types[atom] < 0) continue;
            low[axis] = std::min(low[axis], fraction - cells);
            high[axis] = std::max(high[axis], fraction - cells);
        }
    }

    // First and last shift of an atom along one vector for which the image can be within reach of another atom.
    const auto range = [&](int atom, int axis, double &first, double &last) {
        first = last = 0;
        if (!lattice.periodic(axis)) return;
        const double around = (reach + MARGIN) * lattice.steepness(axis), at = fractions[3 * atom + axis];
        first = std::ceil(low[axis] - around - at);
        last = std::floor(high[axis] + around - at);
    };
    double total = 0;
    for (int atom = 0; atom < num_atoms; ++atom) {
        if (types[atom] < 0) continue;
        double images = 1;
        for (int axis = 0; axis < 3; ++axis) {
            double first, last;
            range(atom, axis, first, last);
            images *= last - first + 1;
        }
        total += images;
    }
    if (!(total < MOST_IMAGES))
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "evaluate: the cell is so small that there are " + std::to_string(total) +
                        " periodic images within cutoff + skin = " + std::to_string(reach) +
                        " angstrom; check the cell, the skin and the unit of length, which is angstrom");

    Images images;
    const auto room = static_cast<size_t>(total) + types.size();
    images.atom.reserve(room);
    images.shift.reserve(3 * room);
    for (int atom = 0; atom < num_atoms; ++atom) images.atom.push_back(atom);
    images.shift = home;
    for (int atom = 0; atom < num_atoms; ++atom) {
        if (types[atom] < 0) continue;
        double first[3], last[3];
        for (int axis = 0; axis < 3; ++axis) range(atom, axis, first[axis], last[axis]);
        for (auto i = static_cast<int>(first[0]); i <= last[0]; ++i)
            for (auto j = static_cast<int>(first[1]); j <= last[1]; ++j)
                for (auto k = static_cast<int>(first[2]); k <= last[2]; ++k) {
                    if (i == 0 && j == 0 && k == 0) continue;
                    images.atom.push_back(atom);
                    images.shift.insert(images.shift.end(),
                                        {home[3 * atom] + i, home[3 * atom + 1] + j, home[3 * atom + 2] + k});
                }
    }
    return images;
}

}  // namespace nequip_md
