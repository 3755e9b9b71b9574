"""Structures of many kinds for tests of graphs, and their edges by a loop over images."""

from __future__ import annotations

from itertools import product

import numpy as np
from ase import Atoms

from nequip_md.graph import Graph
from support.structures import (
    dense_box,
    distant_parts,
    elongated_cell,
    single_atom,
    slab,
    small_molecule,
    triclinic_crystal,
    water_box,
)

NAMES = ["C", "H", "O"]
PAIR_CUTOFFS = np.array([[4.0, 2.0, 3.0], [3.5, 1.7, 2.9], [4.6, 3.9, 4.3]])  # not symmetric


def mixed_cell() -> Atoms:
    """A structure that is periodic along y only, though all three cell vectors are set."""
    atoms = small_molecule()
    atoms.set_cell([[6.0, 1.0, 0.0], [0.5, 3.0, 0.0], [6.0, 1.0, 0.0]])
    atoms.pbc = (False, True, False)
    return atoms


def outside_the_cell() -> Atoms:
    atoms = triclinic_crystal()
    shifts = np.random.default_rng(0).integers(-3, 4, (len(atoms), 3))
    atoms.positions += shifts @ atoms.cell[:]
    return atoms


def left_handed() -> Atoms:
    atoms = triclinic_crystal()
    atoms.set_cell(atoms.cell[[1, 0, 2]])
    return atoms


def one_in_a_small_cell() -> Atoms:
    return Atoms("O", positions=[[0.1, 0.2, 0.3]], cell=[[2.1, 0.0, 0.0], [0.9, 2.3, 0.0], [-0.7, 0.4, 1.9]], pbc=True)


STRUCTURES = {
    f.__name__: f
    for f in (
        water_box,
        small_molecule,
        triclinic_crystal,
        slab,
        single_atom,
        elongated_cell,
        dense_box,
        mixed_cell,
        outside_the_cell,
        left_handed,
        one_in_a_small_cell,
    )
}
STRUCTURES["distant_parts"] = lambda: distant_parts()[2]


def rows(centre, neighbour, vectors) -> np.ndarray:
    """Edges as rows (i, j, x, y, z) in an order that rounding does not change."""
    table = np.column_stack([centre, neighbour, vectors])
    return table[np.lexsort(np.round(table, 6).T[::-1])]


def of_graph(graph: Graph) -> np.ndarray:
    return rows(*graph.edge_index.numpy(), graph.edge_vectors.numpy())


def image_loop(atoms: Atoms, cutoffs: np.ndarray) -> np.ndarray:
    """Every pair through every image that can matter, one at a time."""
    cell = np.where(atoms.pbc[:, None], atoms.cell[:], 0.0)
    spread = np.ptp(atoms.positions, axis=0)
    reach = cutoffs.max() + np.linalg.norm(spread)
    inverse = np.linalg.pinv(cell)  # columns: reciprocal vectors of the periodic directions
    counts = [int(np.ceil(reach * np.linalg.norm(inverse[:, k]))) if atoms.pbc[k] else 0 for k in range(3)]
    types = [NAMES.index(s) for s in atoms.get_chemical_symbols()]
    shifts = np.array(list(product(*(range(-c, c + 1) for c in counts)))) @ cell
    centres, neighbours, vectors = [], [], []
    for i, j in product(range(len(atoms)), repeat=2):
        images = atoms.positions[j] - atoms.positions[i] + shifts
        distance = np.linalg.norm(images, axis=1)
        keep = distance < cutoffs[types[i], types[j]]
        if i == j:
            keep &= distance > 1e-9
        centres += [i] * keep.sum()
        neighbours += [j] * keep.sum()
        vectors += [images[keep]]
    return rows(centres, neighbours, np.concatenate(vectors) if vectors else np.zeros((0, 3)))
