"""Neighbour search under any mixture of periodic and open directions (vesin does the search)."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from vesin import NeighborList

from nequip_md.errors import NequIPMDError

_MARGIN = 1e-6
"""Angstrom added to every search: the search and :func:`edge_vectors` round differently; the caller filters."""


def periodic_cell(atoms: Atoms) -> np.ndarray:
    """Cell vectors in rows, angstrom [3, 3]; open directions are replaced by unit normals, so that it is invertible.

    Raises:
        NequIPMDError: a periodic direction without a cell vector, cell vectors that span no volume, a cell or
            positions that are not finite.
    """
    cell, pbc = np.array(atoms.cell[:], dtype=np.float64), atoms.pbc
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if bad.size:
        raise NequIPMDError(
            f"the position of atom {bad[0]} is {atoms.positions[bad[0]].tolist()} ({bad.size} of {len(atoms)} atoms are"
            " not finite): the run has probably diverged; lower the time step or check the structure"
        )
    if not np.isfinite(cell).all():
        raise NequIPMDError(f"the cell {cell.tolist()} is not finite: the run has probably diverged")
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
        if sizes[-1] < 1e-6:
            raise NequIPMDError(
                f"the periodic cell vectors {cell[pbc].tolist()} are linearly dependent: the cell has no volume"
            )
        cell[~pbc] = directions[len(periodic) :]
    else:
        cell = np.eye(3)
    return cell


def neighbor_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs within ``radius``, images of an atom itself included.

    Args:
        positions: angstrom [N, 3], not necessarily inside the cell.
        cell: from :func:`periodic_cell`, [3, 3].
        pbc: bool [3].
        radius: angstrom. Pairs a little beyond it may be returned as well.

    Returns:
        Pairs (i, j), int64 [2, P], and integer shifts of j in units of the cell vectors, int32 [P, 3]; in the order of
        (i, j, shift), which does not depend on the search.
    """
    if len(positions) == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int32)
    search = NeighborList(cutoff=radius + _MARGIN, full_list=True)
    i, j, shift = search.compute(points=positions, box=cell, periodic=pbc, quantities="ijS")
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    pairs = np.stack([i[order], j[order]]).astype(np.int64)
    return pairs, shift[order].astype(np.int32)


def edge_vectors(positions: np.ndarray, cell: np.ndarray, pairs: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """r_j - r_i + shift . cell for each pair, angstrom [P, 3]."""
    return positions[pairs[1]] - positions[pairs[0]] + shifts @ cell
