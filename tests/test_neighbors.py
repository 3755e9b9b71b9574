"""The neighbour search where atoms are far apart, or far outside their cell."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from nequip_md.graph import Structure
from nequip_md.graph.neighbors import neighbor_pairs
from support.structures import water_box


def nearest_images(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float) -> dict[tuple, float]:
    """Distance of every (i, j, shift) that is within ``radius`` and a little more: images around the nearest one of each pair."""
    inverse = np.linalg.inv(cell)
    reach = [int(np.ceil((radius + 1) * np.linalg.norm(inverse[:, k]))) + 1 if pbc[k] else 0 for k in range(3)]
    around = np.array(list(product(*(range(-r, r + 1) for r in reach))))
    found = {}
    for i, j in product(range(len(positions)), repeat=2):
        step = positions[j] - positions[i]
        shifts = around - np.where(pbc, np.rint(step @ inverse), 0).astype(np.int64)
        distances = np.linalg.norm(step + shifts @ cell, axis=1)
        for k in np.flatnonzero(distances < radius + 1e-3):
            if i != j or shifts[k].any():
                found[i, j, *map(int, shifts[k])] = distances[k]
    return found


def assert_right(atoms: Atoms, radius: float) -> int:
    """Every pair within the radius is found, and none that is clearly beyond it. Returns the number of pairs."""
    structure = Structure.from_ase(atoms, ["H", "O"])
    pairs, shifts = neighbor_pairs([structure], radius)
    found = [tuple(row) for row in np.column_stack([*pairs, *shifts.T]).tolist()]
    assert found == sorted(set(found))
    expected = nearest_images(structure.positions, structure.invertible_cell, structure.pbc, radius)
    assert {edge for edge, distance in expected.items() if distance < radius} <= set(found) <= set(expected)
    return len(found)


def with_copy(atoms: Atoms, offset, **cell) -> Atoms:
    moved = atoms.copy()
    moved.translate(offset)
    both = atoms + moved
    both.set_cell(cell.get("cell", [0, 0, 0]))
    both.pbc = cell.get("pbc", False)
    return both


def turned_around(cells: float) -> Atoms:
    """A small cell whose second atom is outside of it by the given numbers of cells."""
    return Atoms("H2", positions=[[0.1, 0, 0], [0.1 + 0.45 * cells, 1.0, 0.5]], cell=[0.45, 4.0, 5.0], pbc=True)


WATER = molecule("H2O")
FAR = {
    "flat": with_copy(WATER, [1800, 1800, 0]),
    "flat and periodic": with_copy(WATER, [1000, 1000, 0], cell=[2000, 2000, 10], pbc=True),
    "in line": with_copy(WATER, [6e5, 0, 0]),
    "in line, other directions periodic": with_copy(WATER, [3e5, 0, 0], cell=[0, 12, 12], pbc=(False, True, True)),
    "high box": with_copy(WATER, [0, 0, 5e5], cell=[12, 12, 1e6], pbc=(True, True, False)),
    "high periodic box": with_copy(WATER, [0, 0, 1e6 - 4.0], cell=[12, 12, 1e6], pbc=True),
    "everywhere": with_copy(WATER, [1e7, -1e8, 9e8]),
    "many clusters in a plane": Atoms(
        "H40",
        np.random.default_rng(0).uniform(-1e7, 1e7, (20, 1, 3)).repeat(2, 1).reshape(-1, 3) * [1, 1, 0]
        + np.random.default_rng(1).uniform(0, 2, (40, 3)),
    ),
    "2e9 cells outside": turned_around(2.1e9),
    "-2e9 cells outside": turned_around(-2.1e9),
}


@pytest.mark.parametrize("case", FAR)
def test_far_apart(case):
    assert assert_right(FAR[case], 4.0) >= len(FAR[case])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    spread=st.tuples(*[st.floats(0, 7)] * 3),
    size=st.tuples(*[st.one_of(st.floats(0.4, 1), st.floats(1, 6))] * 3),
    radius=st.floats(1.0, 5.0),
)
def test_random_clusters(seed, pbc, spread, size, radius):
    """Clusters of a few atoms, up to 1e7 angstrom apart along each axis, in sheared cells of 2.5 to 1e6 angstrom."""
    rng = np.random.default_rng(seed)
    cell = (np.eye(3) + np.tril(rng.uniform(-0.4, 0.4, (3, 3)), -1)) * 10 ** np.array(size)[:, None]
    centres = rng.uniform(-1, 1, (rng.integers(1, 5), 1, 3)) * 10 ** np.array(spread)
    positions = (centres + rng.uniform(-2, 2, (len(centres), 3, 3))).reshape(-1, 3)
    assert_right(Atoms(["H"] * len(positions), positions, cell=cell, pbc=pbc), radius)


def test_order_does_not_depend_on_where_atoms_are():
    """Whole cells added to some atoms change the shifts and nothing else."""
    atoms = water_box()
    moved = atoms.copy()
    turns = np.random.default_rng(0).integers(-(10**6), 10**6, (len(atoms), 3))
    moved.positions += turns @ atoms.cell[:]
    (pairs, shifts), (pairs_moved, shifts_moved) = (
        neighbor_pairs([Structure.from_ase(a, ["H", "O"])], 4.0) for a in (atoms, moved)
    )
    np.testing.assert_array_equal(pairs, pairs_moved)
    np.testing.assert_array_equal(shifts, shifts_moved - turns[pairs[0]] + turns[pairs[1]])
