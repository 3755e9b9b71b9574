"""Neighbour search under any mixture of periodic and open directions, however far apart the atoms are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from nequip_md.errors import NequIPMDError
from nequip_md.graph.structure import Structure

_MARGIN = 1e-5
"""Angstrom added to every search: the search and :func:`edge_vectors` round differently; the caller filters."""

_MOST_IMAGES = 1_000_000
"""Images of a cell within reach, beyond which the cell must have collapsed."""

_FEW = 200_000
"""Atoms times images below which computing all their distances is faster than a k-d tree."""

_GROUP = 100_000
"""Atoms, times the images of the cell within reach, that are searched at once: enough to make the costs of calls small,
few enough for the processor's cache."""


def neighbor_pairs(structures: Sequence[Structure], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs within ``radius`` of each structure, images of an atom itself included.

    Atoms are put into their cells and compared with all images that can be near them. Time and memory follow the
    numbers of atoms, images and pairs, never the distances between atoms. All steps but the comparison are done for all
    structures at once, as for small structures the cost of NumPy's calls exceeds that of the arithmetic.

    Args:
        radius: angstrom. Pairs a little beyond it may be returned as well.

    Returns:
        Pairs (i, j), int64 [2, P], with atoms counted through all structures, and integer shifts of j in units of the
        cell vectors, int64 [P, 3]; in the order of (i, j, shift), which does not depend on the search.

    Raises:
        NequIPMDError: a cell so small that more than a million of its images lie within the radius.
    """
    sizes = np.array([s.num_atoms for s in structures])
    if sizes.sum() == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    radius += _MARGIN
    owner = np.repeat(np.arange(len(structures)), sizes)
    positions = np.concatenate([s.positions for s in structures])
    cells = np.stack([s.invertible_cell for s in structures])
    inverses = np.linalg.inv(cells)
    pbc = np.stack([s.pbc for s in structures])

    turns = np.where(pbc[owner], np.floor(_transform(positions, inverses, sizes)), 0.0).astype(np.int64)
    wrapped = positions - _transform(turns, cells, sizes)
    fractions = _transform(wrapped, inverses, sizes)
    atom, shifts = _images(fractions, sizes, radius * np.linalg.norm(inverses, axis=1), cells, pbc)
    num_images = np.bincount(owner[atom], minlength=len(sizes))
    images = wrapped.take(atom, axis=0) + _transform(shifts, cells, num_images)

    found = []
    for of_atoms, of_images in zip(_slices(sizes), _slices(num_images)):
        i, image = _within(wrapped[of_atoms], images[of_images], radius)
        found.append((i + of_atoms.start, image + of_images.start))
    i, image = (np.concatenate(x) for x in zip(*found))
    itself = (i == atom[image]) & ~shifts.any(axis=1)[image]
    i, image = i[~itself], image[~itself]
    shifts -= turns[atom]
    # take is several times faster than indexing by an array, for rows
    return np.stack([i, atom[image]]), shifts.take(image, axis=0) + turns.take(i, axis=0)


def search_groups(structures: Sequence[Structure], radius: float) -> Iterator[Sequence[Structure]]:
    """The structures in groups, in their order, each of about as much work as one search should do."""
    sizes, cells, pbc = (
        np.array([getattr(s, name) for s in structures]) for name in ("num_atoms", "invertible_cell", "pbc")
    )
    reach = radius * np.linalg.norm(np.linalg.inv(cells), axis=1)
    work = sizes * np.where(pbc, 2 * reach + 3, 3.0).prod(axis=1)
    starts = np.flatnonzero(np.diff(np.cumsum(work) // _GROUP, prepend=-1)).tolist()
    return (structures[start:end] for start, end in zip(starts, [*starts[1:], len(structures)]))


def _within(atoms: np.ndarray, images: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of an atom and an image within the radius, int64 [P] and [P], in the order of (atom, image)."""
    if len(atoms) * len(images) < _FEW:
        keys = np.flatnonzero(cdist(atoms, images, "sqeuclidean") <= radius**2)
    else:
        found = KDTree(atoms).sparse_distance_matrix(KDTree(images), radius, output_type="ndarray")
        keys = np.sort(found["i"] * len(images) + found["j"])
    return np.divmod(keys, max(len(images), 1))


def _slices(sizes: np.ndarray) -> Iterator[slice]:
    """The part of each structure in an array that holds so many rows of each."""
    ends = np.cumsum(sizes).tolist()
    return map(slice, [0, *ends], ends)


def _transform(vectors: np.ndarray, matrices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``vectors @ matrix`` with one matrix for so many vectors of each structure, float64 [N, 3]."""
    return np.concatenate([vectors[part] @ matrix for part, matrix in zip(_slices(sizes), matrices)])


def _images(
    fractions: np.ndarray, sizes: np.ndarray, reach: np.ndarray, cells: np.ndarray, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and their periodic images within reach of their structure's bounding box, in the order of (atom, shift).

    Args:
        fractions: of atoms inside the cell, in units of the cell vectors [N, 3].
        sizes: numbers of atoms of each structure [B].
        reach: radius of the search in units of the distances between the cell's faces [B, 3].

    Returns:
        The atom that each is an image of, int64 [M], and its shift, int64 [M, 3].
    """
    owner = np.repeat(np.arange(np.count_nonzero(sizes)), sizes[sizes > 0])  # structures without atoms have no box
    reach, cells, pbc, starts = (x[sizes > 0] for x in (reach, cells, pbc, np.cumsum(sizes) - sizes))
    low, high = (extreme.reduceat(fractions, starts) for extreme in (np.minimum, np.maximum))
    most = np.where(pbc, np.floor(reach + high - low), 0.0)
    counts = (2 * most + 1).prod(axis=1)
    if counts.max() > _MOST_IMAGES:
        raise NequIPMDError(
            f"the cell {cells[counts.argmax()].tolist()} is so small that {counts.max():.0e} of its images lie within"
            " the cutoff: it has probably collapsed; check the structure and the barostat"
        )
    most = most.astype(np.int64)[owner]
    low, high = (low - reach)[owner], (high + reach)[owner]
    atom = np.arange(len(fractions))
    shifts = np.zeros((len(fractions), 3), dtype=np.int64)
    for axis in np.flatnonzero(most.any(axis=0)):
        steps = 2 * most[atom, axis] + 1
        rows = np.repeat(np.arange(len(atom)), steps)
        step = np.arange(len(rows)) - (np.cumsum(steps) - steps + most[atom, axis])[rows]
        atom = atom[rows]
        image = fractions[atom, axis] + step
        near = (image >= low[atom, axis]) & (image <= high[atom, axis])
        atom, shifts = atom[near], shifts.take(rows[near], axis=0)
        shifts[:, axis] = step[near]
    return atom, shifts


def edge_vectors(structures: Sequence[Structure], pairs: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """r_j - r_i + shift . cell for each pair of :func:`neighbor_pairs`, angstrom [P, 3]."""
    positions = np.concatenate([s.positions for s in structures])
    ends = np.searchsorted(pairs[0], np.cumsum([s.num_atoms for s in structures]))
    cells = np.stack([s.invertible_cell for s in structures])
    vectors = positions.take(pairs[1], axis=0) - positions.take(pairs[0], axis=0)
    return vectors + _transform(shifts, cells, np.diff(ends, prepend=0))
