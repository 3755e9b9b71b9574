"""Neighbour search under any mixture of periodic and open directions, however far apart the atoms are."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from nequip_md.errors import NequIPMDError

FARTHEST = 1e9
"""Angstrom from the origin, beyond which a position is refused: float64 resolves 1e-7 angstrom there."""

_MARGIN = 1e-5
"""Angstrom added to every search: the search and :func:`edge_vectors` round differently; the caller filters."""

_MOST_IMAGES = 1_000_000
"""Images of a cell within reach, beyond which the cell must have collapsed."""

_FLAT = 1e-6
"""Smallest singular value of unit vectors that still span an area or a volume."""


def periodic_cell(atoms: Atoms) -> np.ndarray:
    """Cell vectors in rows, angstrom [3, 3]; open directions are replaced by unit normals, so that it is invertible.

    Raises:
        NequIPMDError: a periodic direction without a cell vector, cell vectors that span no volume, a cell or
            positions that are not finite or beyond :data:`FARTHEST`.
    """
    cell, pbc = np.array(atoms.cell[:], dtype=np.float64), atoms.pbc
    remedy = "the run has probably diverged; lower the time step or check the structure"
    bad = np.flatnonzero(~(np.abs(atoms.positions) <= FARTHEST).all(axis=1))
    if bad.size:
        raise NequIPMDError(
            f"the position of atom {bad[0]} is {atoms.positions[bad[0]].tolist()} ({bad.size} of {len(atoms)} atoms are"
            f" not finite, or farther than {FARTHEST:g} angstrom from the origin): {remedy}"
        )
    if not (np.abs(cell) <= FARTHEST).all():
        raise NequIPMDError(f"the cell {cell.tolist()} is not finite, or longer than {FARTHEST:g} angstrom: {remedy}")
    lengths = np.linalg.norm(cell, axis=1)
    for axis in range(3):
        if pbc[axis] and lengths[axis] == 0:
            raise NequIPMDError(
                f"the structure is periodic along cell vector {axis + 1}, which is zero: give the cell or set pbc to"
                " False there"
            )
    periodic = cell[pbc] / lengths[pbc, None]
    if len(periodic):
        _, sizes, directions = np.linalg.svd(periodic)
        if sizes[-1] < _FLAT:
            raise NequIPMDError(
                f"the periodic cell vectors {cell[pbc].tolist()} are linearly dependent: the cell has no volume"
            )
        cell[~pbc] = directions[len(periodic) :]
    else:
        cell = np.eye(3)
    return cell


def cell_volume(atoms: Atoms) -> float | None:
    """Volume of the cell, angstrom^3, whatever is periodic; None where its vectors span none (absent or coplanar)."""
    cell = np.asarray(atoms.cell[:], dtype=np.float64)
    lengths = np.linalg.norm(cell, axis=1)
    if not lengths.all() or np.linalg.svd(cell / lengths[:, None], compute_uv=False)[-1] < _FLAT:
        return None
    return float(abs(np.linalg.det(cell)))


def neighbor_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs within ``radius``, images of an atom itself included.

    Atoms are put into the cell, and a k-d tree of them meets one of all images that can be near them. Time and memory
    follow the numbers of atoms, images and pairs, never the distances between atoms.

    Args:
        positions: angstrom [N, 3], not necessarily inside the cell.
        cell: from :func:`periodic_cell`, [3, 3].
        pbc: bool [3].
        radius: angstrom. Pairs a little beyond it may be returned as well.

    Returns:
        Pairs (i, j), int64 [2, P], and integer shifts of j in units of the cell vectors, int64 [P, 3]; in the order of
        (i, j, shift), which does not depend on the search.

    Raises:
        NequIPMDError: a cell so small that more than a million of its images lie within the radius.
    """
    if len(positions) == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    radius += _MARGIN
    inverse = np.linalg.inv(cell)
    turns = np.where(pbc, np.floor(positions @ inverse), 0.0).astype(np.int64)
    wrapped = positions - turns @ cell
    atom, shifts = _images(wrapped @ inverse, radius * np.linalg.norm(inverse, axis=0), cell, pbc)
    images = wrapped[atom] + shifts @ cell
    found = KDTree(wrapped).sparse_distance_matrix(KDTree(images), radius, output_type="ndarray")
    # images are in the order of (atom, shift), so sorted columns of a sparse matrix are in the order of (j, shift)
    matrix = csr_array((found["v"], (found["i"], found["j"])), shape=(len(positions), len(atom)))
    matrix.sort_indices()
    i = np.repeat(np.arange(len(positions)), np.diff(matrix.indptr))
    j, shifts = atom[matrix.indices], shifts[matrix.indices]
    others = (i != j) | shifts.any(axis=1)
    i, j = i[others], j[others]
    return np.stack([i, j]), shifts[others] + turns[i] - turns[j]


def _images(
    fractions: np.ndarray, reach: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and their periodic images that lie within reach of the atoms' bounding box, in the order of (atom, shift).

    Args:
        fractions: of atoms inside the cell, in units of the cell vectors [N, 3].
        reach: radius of the search in units of the distances between the cell's faces [3].

    Returns:
        The atom that each is an image of, int64 [M], and its shift, int64 [M, 3].
    """
    low, high = fractions.min(axis=0), fractions.max(axis=0)
    most = np.where(pbc, np.floor(reach + high - low), 0.0)
    if (2 * most + 1).prod() > _MOST_IMAGES:
        raise NequIPMDError(
            f"the cell {cell.tolist()} is so small that {(2 * most + 1).prod():.0e} of its images lie within the"
            " cutoff: it has probably collapsed; check the structure and the barostat"
        )
    atom = np.arange(len(fractions))
    shifts = np.zeros((len(fractions), 3), dtype=np.int64)
    for axis in np.flatnonzero(most):
        steps = np.arange(-most[axis], most[axis] + 1).astype(np.int64)
        images = fractions[atom, axis, None] + steps
        near = (images >= low[axis] - reach[axis]) & (images <= high[axis] + reach[axis])
        rows, columns = np.nonzero(near)
        atom, shifts = atom[rows], shifts[rows]
        shifts[:, axis] = steps[columns]
    return atom, shifts


def edge_vectors(positions: np.ndarray, cell: np.ndarray, pairs: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """r_j - r_i + shift . cell for each pair, angstrom [P, 3]."""
    return positions[pairs[1]] - positions[pairs[0]] + shifts @ cell
