// Periodic images of the caller's atoms, for callers that do not make images themselves.
#pragma once

#include <vector>

namespace nequip_md {

// The cell vectors along which a system repeats.
class Lattice {
 public:
    // cell: [3][3], rows are the vectors, angstrom; those whose `periodic` is 0 are not read.
    // Throws Error (BAD_INPUT) if the others are not finite or span no volume.
    Lattice(const double *cell, const int *periodic);

    bool periodic(int axis) const { return periodic_[axis]; }
    const double *vectors() const { return vectors_; }  // [3][3]; zero along directions that are not periodic

    // Coordinate of a point along one vector, in units of the vector.
    double fraction(int axis, const double *point) const;

    // Largest difference of this coordinate between points that are one angstrom apart.
    double steepness(int axis) const;

 private:
    bool periodic_[3];
    double vectors_[9];
    double reciprocal_[9];  // rows are the gradients of fraction()
};

// Positions of possible neighbours: each atom, moved into the cell, then the images around it.
struct Images {
    std::vector<int>
        atom;  // [positions], the caller's atom: 0, 1, ... for the atoms themselves, then that of each image
    std::vector<int> shift;  // [positions][3], numbers of lattice vectors that are added to the atom's position
    bool operator==(const Images &) const = default;
};

// Finds all images that are within `reach` angstrom of an atom.
//
// positions: [atoms][3]; types: [atoms], those without a type (-1) have no images.
// Throws Error (BAD_INPUT) if there are too many, or an atom is so far outside of the cell that its position has lost
// precision.
Images make_images(const Lattice &lattice, const double *positions, const std::vector<int> &types, double reach);

}  // namespace nequip_md
