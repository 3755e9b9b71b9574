"""Ghosts whose features the caller exchanges: their order, and refusals."""

from __future__ import annotations

import subprocess
import zipfile
from ctypes import POINTER, c_double, cast
from pathlib import Path

import numpy as np
import pytest

from support.artifacts import with_metadata
from support.engine import BAD_INPUT, BAD_MODEL, EXCHANGE, INTERNAL, OK, load_model
from support.engine_calls import Atoms, repeated, some_atoms

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def exchanging(lj_artifact, tmp_path_factory) -> Path:
    """The artifact ``lj_artifact`` with support/exchanging.c before it: code that exchanges features, then computes Lennard-Jones."""
    folder = tmp_path_factory.mktemp("exchanging")
    claims = with_metadata(lj_artifact, folder / "claims.pt2", message_passing_layers="2", ghosts="yes")
    path = folder / "exchanging.pt2"
    with zipfile.ZipFile(claims) as old, zipfile.ZipFile(path, "w") as new:
        (name,) = [name for name in old.namelist() if name.endswith(".so")]
        (folder / "original.so").write_bytes(old.read(name))
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-Wall", SUPPORT / "exchanging.c", "-o", folder / "stand_in.so"]
            + [
                f"-L{folder}",
                "-Wl,--no-as-needed",
                "-l:original.so",
                "-Wl,-rpath,$ORIGIN",
                "-Wl,--unresolved-symbols=ignore-all",
            ],
            check=True,
        )
        for item in old.infolist():
            new.writestr(item, (folder / "stand_in.so").read_bytes() if item.filename == name else old.read(item))
        new.write(folder / "original.so", str(Path(name).with_name("original.so")))
    return path


def with_exchange(atoms: Atoms, function) -> Atoms:
    atoms.callback = EXCHANGE(function)  # kept alive
    atoms.overrides["exchange"] = atoms.callback
    return atoms


@pytest.mark.parametrize("centres", [[0, 1, 2, 3], [6, 2, 4], []])
def test_rows(centres, library, exchanging, lj_artifact):
    """Rows are the centres in their order without those outside the model, then all other atoms; results are those of a local model."""
    calls = []

    def exchange(context, reduce, features, owned, ghosts, width, bytes_each, stream):
        values = np.ctypeslib.as_array(cast(features, POINTER(c_double)), (owned + ghosts, width))
        calls.append((reduce, owned, ghosts, width, bytes_each, values.copy()))
        values[owned:] = 100 + np.arange(ghosts)[:, None]
        return 0

    ours, local = (some_atoms(9, centres=centres) for _ in range(2))
    ours.types[2] = local.types[2] = 0  # of no model type
    handle = load_model(library, exchanging)
    with_exchange(ours, exchange).evaluate(library, handle)
    local.evaluate(library, load_model(library, lj_artifact))
    assert (ours.status, local.status) == (OK, OK), ours.message
    assert ours.energy == pytest.approx(local.energy, rel=1e-14)
    for name in ("forces", "energies", "virials", "centroid"):
        np.testing.assert_allclose(
            np.array(getattr(ours, name)), np.array(getattr(local, name)), atol=1e-14, err_msg=name
        )
    phantoms, real = 2, len([atom for atom in centres if atom != 2])
    assert [call[:5] for call in calls] == [(reduce, real + phantoms, 9 - len(centres), 2, 8) for reduce in (0, 1)]
    first, second = (call[5] for call in calls)
    assert np.isnan(first[real + phantoms :]).all() and not np.isnan(first[: real + phantoms]).any()
    assert (second[real + phantoms :, 0] == 100 + np.arange(9 - len(centres))).all()
    library.nequip_md_free(handle)


def test_without_exchange(library, exchanging):
    """On one process, with owners or a cell, the callback is not called, even after an evaluation that called it."""
    handle, calls = load_model(library, exchanging), []

    def exchange(*arguments):
        calls.append(arguments)
        return 0

    assert with_exchange(some_atoms(6, centres=[0, 1]), exchange).evaluate(library, handle).status == OK
    assert len(calls) == 2
    alone = some_atoms(6, centres=[0, 1, 2], owner=[0, 1, 2, 1, 0, 1]).evaluate(library, handle)
    boxed = repeated(some_atoms(6), 12.0).evaluate(library, handle)
    assert (alone.status, boxed.status, len(calls)) == (OK, OK, 2), (alone.message, boxed.message)
    library.nequip_md_free(handle)


@pytest.mark.parametrize("fails", [0, 1])
def test_failure(fails, library, exchanging):
    """A nonzero return value of the callback ends the evaluation, and the handle stays usable."""
    handle = load_model(library, exchanging)
    bad = with_exchange(some_atoms(6, centres=[0, 1]), lambda context, reduce, *rest: 31 * (reduce == fails))
    assert bad.evaluate(library, handle).status == INTERNAL
    assert "the caller's function `exchange` returned 31, so ghosts have no features" in bad.message
    good = with_exchange(some_atoms(6, centres=[0, 1]), lambda *arguments: 0).evaluate(library, handle)
    assert (good.status, good.message) == (OK, "")
    library.nequip_md_free(handle)


def test_large_forces_are_exchanged_once(library, exchanging, lj_artifact):
    """Forces beyond fixed point, which only one process may have, must not cause another exchange."""
    positions, types, calls = [[0, 0, 0], [1.1, 0, 0], [0, 3.9, 0], [3.5, 3.5, 1]], [1, 1, 2, 1], []
    ours, local = (Atoms(positions, types, centres=[0, 1, 2]) for _ in range(2))
    handle = load_model(library, exchanging)
    with_exchange(ours, lambda context, reduce, *rest: calls.append(reduce) or 0).evaluate(library, handle)
    local.evaluate(library, load_model(library, lj_artifact))
    assert ours.status == OK and calls == [0, 1]
    assert np.abs(np.array(ours.forces)).max() > 1e4
    np.testing.assert_allclose(np.array(ours.forces), np.array(local.forces), rtol=1e-12)
    assert ours.energy == pytest.approx(local.energy, rel=1e-14)
    library.nequip_md_free(handle)


def test_changed_centres(library, exchanging, lj_artifact):
    """With lists_changed = 0, a change between exchange and owners renumbers the nodes."""
    handle = load_model(library, exchanging)
    some_atoms(6, centres=[0, 1, 2], owner=[0, 1, 2, 1, 0, 1]).evaluate(library, handle)
    ours = with_exchange(some_atoms(6, centres=[0, 1, 2]), lambda *arguments: 0)
    ours.lists_changed = 0
    ours.evaluate(library, handle)
    local = some_atoms(6, centres=[0, 1, 2]).evaluate(library, load_model(library, lj_artifact))
    assert ours.status == OK and ours.energy == pytest.approx(local.energy, rel=1e-14)
    library.nequip_md_free(handle)


def test_refused(library, doctored, exchanging, lj_artifact):
    """An exchange is refused for models that exchange nothing, by their metadata or their code, and together with a cell."""

    def evaluate(path, atoms=None):
        handle = load_model(library, path)
        atoms = with_exchange(atoms or some_atoms(6, centres=[0, 1]), lambda *arguments: 1).evaluate(library, handle)
        library.nequip_md_free(handle)
        return atoms

    for ghosts in ("yes", "no"):
        atoms = evaluate(doctored(message_passing_layers="2", ghosts=ghosts))
        assert atoms.status == BAD_MODEL
        assert "the model was exported for one process" in atoms.message
        assert "write it again with: nequip-md-export MODEL -o OUT.pt2" in atoms.message
    atoms = evaluate(exchanging, repeated(some_atoms(6), 12.0))
    assert atoms.status == BAD_INPUT and "cell is for one process and exchange for several" in atoms.message
    assert evaluate(lj_artifact).status == OK, "local models need no exchange"
