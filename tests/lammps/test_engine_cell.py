"""Systems with a cell, whose periodic images the engine makes."""

from __future__ import annotations

import numpy as np
import pytest

from support.engine import (
    BAD_INPUT,
    OK,
)
from support.engine_calls import Atoms, repeated, some_atoms


@pytest.mark.parametrize("length", [4.5, 30.0])
def test_centres_with_a_cell(length, library, load, lj_artifact):
    """Energies, forces and virials of some centres and of the others add up to those of all."""
    handle = load(lj_artifact)
    parts = [[7, 2], [0, 1, 3, 4, 5, 6, 8]]
    first, second, whole = (
        repeated(some_atoms(9, centres=centres), length).evaluate(library, handle) for centres in (*parts, None)
    )
    assert whole.status == first.status == second.status == OK, whole.message
    assert first.energy + second.energy == pytest.approx(whole.energy, rel=1e-13)
    for name in ("forces", "energies", "virials", "centroid"):
        total = np.array(getattr(first, name)) + np.array(getattr(second, name))
        np.testing.assert_allclose(total, np.array(getattr(whole, name)), rtol=1e-10, atol=1e-10, err_msg=name)
    nine = np.array(whole.centroid).reshape(-1, 9).sum(0)
    np.testing.assert_allclose(nine[:3], whole.virial[:3], rtol=1e-10)


@pytest.mark.parametrize("max_edges", [0, 40])
def test_atoms_outside_the_model_have_no_images(max_edges, library, load, lj_artifact):
    handle = load(lj_artifact, max_edges=max_edges)
    full = repeated(some_atoms(8), 9.0)
    full.types = [0 if k in (0, 5) else t for k, t in enumerate(full.types)]
    full.evaluate(library, handle)
    kept = [k for k in range(8) if k not in (0, 5)]
    few = repeated(Atoms(full.positions[kept], [full.types[k] for k in kept]), 9.0).evaluate(library, handle)
    assert full.status == few.status == OK
    np.testing.assert_allclose(np.array(full.energies)[kept], np.array(few.energies), rtol=1e-13)
    np.testing.assert_allclose(
        np.array(full.forces).reshape(-1, 3)[kept], np.array(few.forces).reshape(-1, 3), atol=1e-13
    )


@pytest.mark.parametrize("count", [0, 3])
def test_cell_without_atoms_of_the_model(count, library, load, lj_artifact):
    """Evaluate no atoms, or only atoms outside the model, then other atoms with the same handle."""
    handle = load(lj_artifact)
    nothing = repeated(some_atoms(count), 7.0)
    nothing.types = [0] * count
    assert nothing.evaluate(library, handle).status == OK, nothing.message
    assert nothing.energy == 0 and not any(nothing.forces)
    some = repeated(some_atoms(4), 7.0).evaluate(library, handle)
    assert some.status == OK and some.energy == repeated(some_atoms(4), 7.0).evaluate(library, load(lj_artifact)).energy


def test_contact_with_an_image(library, load, doctored):
    """The guard reports indices of the caller's atoms and the distance across the boundary."""
    handle = load(doctored(closest_distances="3.0 3.0 3.0 3.0"))
    atoms = repeated(Atoms([[0.1, 5.0, 5.0], [5.0, 5.0, 5.0], [9.6, 5.0, 5.0]], [1, 1, 2]), 11.0).evaluate(
        library, handle
    )
    assert (atoms.status, atoms.warning[:44]) == (OK, "atoms of types Ar and Ne are 1.5 angstrom ap"), atoms.message
    assert sorted(atoms.warned) == [0, 2]


BAD_WITH_A_CELL = {
    "lists": ("neighbours", "with cell the engine makes images and lists itself"),
    "owners": ("owner", "with cell the engine makes images and lists itself"),
    "on a GPU": ("memory", "memory says that the arrays lie on a GPU, but this model runs on the CPU"),
    "nowhere": ("nowhere", "memory must be NEQUIP_MD_HOST_MEMORY or NEQUIP_MD_GPU_MEMORY"),
}


@pytest.mark.parametrize("case", BAD_WITH_A_CELL)
def test_bad_input_with_a_cell(case, library, load, lj_artifact):
    field, words = BAD_WITH_A_CELL[case]
    atoms = repeated(some_atoms(6), 12.0)
    if field == "neighbours":
        del atoms.overrides["neighbours"], atoms.overrides["num_neighbours"]
    elif field == "owner":
        atoms.owner = list(range(6))
    else:
        atoms.overrides["memory"] = 7 if field == "nowhere" else 1
    atoms.evaluate(library, load(lj_artifact))
    assert atoms.status == BAD_INPUT and words in atoms.message


def test_message_passing_with_a_cell_needs_all_centres(library, load, doctored):
    handle = load(doctored(message_passing_layers="2"))
    atoms = repeated(some_atoms(6, centres=[0, 1, 2, 4, 5]), 12.0).evaluate(library, handle)
    assert atoms.status == BAD_INPUT and "with cell every atom must be a centre" in atoms.message
    assert atoms.failed_atom == 3
