"""The neighbour list with a skin gives the graph of a new search, bit for bit, after any change of the atoms."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms

from nequip_md import NequIPMDError
from nequip_md.graph import Graph, Structure, VerletList, build_graph
from support.graph_cases import NAMES, PAIR_CUTOFFS, STRUCTURES, outside_the_cell
from support.structures import small_molecule, water_box


def of_atoms(atoms: Atoms) -> Structure:
    return Structure.from_ase(atoms, NAMES)


def assert_same(graph: Graph, atoms: Atoms):
    for found, expected in zip(graph.tensors, build_graph(of_atoms(atoms), PAIR_CUTOFFS).tensors):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [n for n in STRUCTURES if n != "single_atom"])
def test_skin_along_a_random_walk(name):
    """Reuse gives the graph of a new search, bit for bit, while atoms wander and the cell breathes and shears."""
    atoms = STRUCTURES[name]()
    rng = np.random.default_rng(3)
    lists = VerletList(PAIR_CUTOFFS, skin=0.8)
    for _ in range(25):
        assert_same(lists.graph(of_atoms(atoms)), atoms)
        atoms.positions += rng.normal(scale=0.04, size=atoms.positions.shape)
        if atoms.pbc.any():
            atoms.set_cell(
                atoms.cell[:] @ (np.eye(3) + rng.normal(scale=0.005, size=(3, 3))), scale_atoms=bool(atoms.pbc.all())
            )
    assert lists.num_searches < 20 and (lists.num_searches > 1 or len(atoms) == 1)


def test_skin_holds_a_pair_that_comes_from_outside_it():
    """Two atoms that start just outside cutoff + skin and move just under half of the skin stay unseen, rightly."""
    lists = VerletList(3.0, skin=1.0)
    atoms = Atoms("H2", positions=[[0, 0, 0], [4.001, 0, 0]])
    assert lists.graph(of_atoms(atoms)).num_edges == 0
    atoms.positions[:, 0] += [0.4999, -0.4999]
    assert lists.graph(of_atoms(atoms)).num_edges == 0 and lists.num_searches == 1
    atoms.positions[:, 0] += [0.001, -0.001]
    assert lists.graph(of_atoms(atoms)).num_edges == 2 and lists.num_searches == 2


def test_skin_under_compression():
    """A shrinking cell brings atoms together without moving one of them relative to it: the list must notice."""
    atoms = Atoms("H", positions=[[0.2, 0.1, 0.0]], cell=[5.1, 5.1, 5.1], pbc=True)
    lists = VerletList(4.0, skin=1.0)
    counts = []
    for _ in range(42):
        counts.append(lists.graph(of_atoms(atoms)).num_edges)
        assert counts[-1] == build_graph(of_atoms(atoms), 4.0).num_edges
        atoms.set_cell(atoms.cell[:] * 0.985, scale_atoms=True)
    assert counts[0] == 0 and counts[-1] > 6
    assert 2 < lists.num_searches < 15


CHANGES = {
    "wrapped": lambda a: a.wrap() or a,
    "other species": lambda a: a.set_chemical_symbols(["C"] * len(a)) or a,
    "fewer atoms": lambda a: a[:-1],
    "other pbc": lambda a: a.set_pbc((True, False, True)) or a,
    "other cell": lambda a: a.set_cell(a.cell[:] * 1.2) or a,
    "permuted": lambda a: a[::-1],
    "replaced": lambda a: small_molecule(),
    "emptied": lambda a: a[:0],
}


@pytest.mark.parametrize("change", CHANGES)
def test_skin_after_a_sudden_change(change):
    atoms = outside_the_cell()
    lists = VerletList(PAIR_CUTOFFS, skin=1.0)
    lists.graph(of_atoms(atoms))
    changed = CHANGES[change](atoms.copy())
    assert_same(lists.graph(of_atoms(changed)), changed)
    assert_same(lists.graph(of_atoms(atoms)), atoms)


def test_negative_skin_is_refused():
    with pytest.raises(NequIPMDError, match="at least 0 angstrom, it is -1"):
        VerletList(3.0, skin=-1.0)


def test_copies_and_threads_do_not_disturb_each_other():
    """A copy of a list, and threads that share one, get graphs of their own atoms."""
    structures = [water_box(seed=k) for k in range(6)]
    lists = VerletList(PAIR_CUTOFFS, skin=1.0)
    lists.graph(of_atoms(structures[0]))
    copied = copy.copy(lists)
    copied.graph(of_atoms(structures[1]))
    assert_same(lists.graph(of_atoms(structures[0])), structures[0])
    with ThreadPoolExecutor(4) as pool:
        for k, graph in enumerate(pool.map(lists.graph, [of_atoms(a) for a in structures * 20])):
            assert_same(graph, structures[k % 6])
