"""Neighbours that the engine finds itself, and what it keeps between evaluations."""

from __future__ import annotations

import copy
import resource

import numpy as np
import pytest

from support.engine import (
    BAD_INPUT,
    OK,
)
from support.engine_calls import Atoms, found_by_engine, reference, some_atoms


def test_lists_unchanged(library, load, lj_artifact):
    """Positions may change between calls without new lists; changed types are detected although lists_changed is 0."""
    handle = load(lj_artifact)
    atoms = some_atoms(12).evaluate(library, handle)
    for change in ("positions", "types"):
        if change == "positions":
            atoms.positions += np.random.default_rng(3).uniform(-0.1, 0.1, atoms.positions.shape)
        else:
            atoms.types = atoms.types[::-1]
        atoms.lists_changed = 0
        kept = atoms.evaluate(library, handle).energy
        atoms.lists_changed = 1
        assert kept == atoms.evaluate(library, handle).energy, change


@pytest.mark.parametrize("centres", [None, [3, 5], []])
@pytest.mark.parametrize("spread", [1.0, 4.0, (1.0, 1.0, 30.0), 2e4])
def test_neighbours_found_by_the_engine(library, load, lj_artifact, centres, spread):
    """Without lists the engine finds all neighbours, for dense, sparse, elongated and very distant arrangements of atoms."""
    systems = []
    for _ in range(2):
        atoms = some_atoms(40, centres=centres)
        atoms.positions = atoms.positions * spread
        atoms.types[7] = 0  # of no model type
        systems.append(atoms)
    listed = systems[0].evaluate(library, load(lj_artifact))
    searched = found_by_engine(systems[1], skin=0.3).evaluate(library, load(lj_artifact))
    assert (searched.status, searched.message) == (OK, "")
    assert searched.energy == pytest.approx(listed.energy, rel=1e-14)
    for name in ("forces", "energies", "virials", "centroid"):
        np.testing.assert_allclose(
            np.array(getattr(searched, name)), np.array(getattr(listed, name)), atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("spread", [(1e5, 1e5, 1.0), (1e5, 1.0, 1.0), 1e5])
def test_few_cells_for_atoms_far_apart(library, load, lj_artifact, lj_model, spread):
    """Memory depends on the number of atoms and not on the extents of the box around them, here up to 6e5 angstrom."""
    few = some_atoms(40).positions * spread
    atoms = Atoms(np.vstack([few, few + 2.0]), [1, 2] * 40)
    energies, forces = reference(lj_model, atoms)
    handle = load(lj_artifact)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found_by_engine(atoms, skin=0.3).evaluate(library, handle)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (atoms.status, atoms.message) == (OK, "")
    np.testing.assert_allclose(np.array(atoms.energies), energies, rtol=1e-9)
    np.testing.assert_allclose(np.array(atoms.forces).reshape(-1, 3), forces, rtol=1e-9, atol=1e-9)
    assert np.abs(forces).max(axis=1).min() > 1e-3 and grown < 100_000, f"{grown} kB"


def test_found_neighbours_last_for_the_skin(library, load, lj_artifact):
    """With lists_changed = 0, atoms that move into reach within the skin become neighbours."""
    handle = load(lj_artifact)
    atoms = found_by_engine(Atoms([[0, 0, 0], [6.4, 0, 0]], [1, 1]), skin=1.0)
    assert atoms.evaluate(library, handle).status == OK and max(map(abs, atoms.forces)) == 0
    atoms.positions[1, 0] = 5.7
    atoms.lists_changed = 0
    assert atoms.evaluate(library, handle).status == OK and max(map(abs, atoms.forces)) > 0


@pytest.mark.parametrize("change", ["positions", "centres", "types", "type_map", "failure between"])
def test_rebuilt_lists(change, library, load, lj_artifact):
    """Data that the table keeps from previous lists is valid for the new ones, whatever has changed."""
    handle, skin = load(lj_artifact), 0.3
    found_by_engine(some_atoms(12), skin).evaluate(library, handle)
    atoms = found_by_engine(some_atoms(12), skin)
    if change == "positions":
        atoms.positions = atoms.positions[:, [2, 0, 1]] * 1.1
    elif change == "centres":
        atoms.centres = atoms.centres[:5][::-1]
    elif change == "types":
        atoms.types = atoms.types[1:] + [0]
    elif change == "type_map":
        atoms.type_map = (-1, 1, -1)
    else:
        wrong = found_by_engine(some_atoms(11, centres=[0, 1, 2]), skin)
        wrong.types[3] = 99
        assert wrong.evaluate(library, handle).status != OK
    ours, fresh = (copy.deepcopy(atoms).evaluate(library, h) for h in (handle, load(lj_artifact)))
    assert ours.status == OK and ours.energy == fresh.energy != 0
    for name in ("forces", "energies", "virials", "centroid"):
        assert list(getattr(ours, name)) == list(getattr(fresh, name)), name


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("num_neighbours", None, "one of num_neighbours and neighbours is NULL"),
        ("skin", -1.0, "skin"),
        ("skin", float("nan"), "skin"),
    ],
)
def test_bad_neighbour_input(library, load, lj_artifact, field, value, words):
    atoms = some_atoms(5)
    atoms.overrides[field] = value
    assert atoms.evaluate(library, load(lj_artifact)).status == BAD_INPUT
    assert words in atoms.message
