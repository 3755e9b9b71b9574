"""Ghosts whose features the caller sends and receives: what travels, where it goes, and refusals."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from ctypes import POINTER, c_double, c_int, cast, pointer
from pathlib import Path

import numpy as np
import pytest

from support.artifacts import with_metadata
from support.engine import BAD_INPUT, BAD_MODEL, INTERNAL, OK, TRANSFER, Exchange, c_array, load_model
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


Transfer = Callable[[bool, np.ndarray, np.ndarray], int | None]


def with_exchange(
    atoms: Atoms, transfer: Transfer | None, sent=(), received=(), images=(), originals=(), **fields
) -> Atoms:
    """``transfer(reduce, outgoing, incoming)`` gets arrays [atoms, 2], and fills the second one."""

    def callback(context, reduce, outgoing, incoming, bytes_each):
        assert bytes_each == 2 * 8
        counts = (len(received), len(sent)) if reduce else (len(sent), len(received))
        arrays = (
            np.ctypeslib.as_array(cast(address, POINTER(c_double)), (count, 2)) if count else np.zeros((0, 2))
            for address, count in zip((outgoing, incoming), counts)
        )
        return transfer(bool(reduce), *arrays) or 0

    lists = {"sent": sent, "received": received, "images": images, "originals": originals}
    exchange = Exchange(
        transfer=TRANSFER(callback) if transfer else TRANSFER(),
        num_sent=len(sent),
        num_received=len(received),
        num_images=len(images),
        **{name: c_array(values, c_int) for name, values in lists.items() if values},
    )
    for name, value in fields.items():
        setattr(exchange, name, value)
    atoms.exchange = exchange  # kept alive
    atoms.overrides["exchange"] = pointer(exchange)
    return atoms


def nothing(reduce, outgoing, incoming) -> None:
    pass


@pytest.mark.parametrize("centres", [[0, 1, 2, 3], [6, 2, 4], []])
def test_what_travels(centres, library, exchanging, lj_artifact):
    """Features of the sent atoms go out in their order, those of ghosts arrive, images get those of their originals, and gradients
    are added up; results are those of a local model."""
    ours, local = (some_atoms(9, centres=centres) for _ in range(2))
    ours.types[2] = local.types[2] = 0  # of no model type
    known = [atom for atom in centres if atom != 2]
    ghosts = [atom for atom in range(9) if atom not in centres]
    sent = [*reversed(centres), *known[:1]]
    images = ghosts[:2] if known else []
    originals, received = known[-1:] * len(images), ghosts[:1:-1]
    own = {atom: 1.0 + k for k, atom in enumerate(known)}  # the stand-in's features
    calls = []

    def transfer(reduce, outgoing, incoming):
        calls.append((reduce, outgoing.copy()))
        incoming[:] = (1000 if reduce else 100) * (1 + np.arange(len(incoming)))[:, None]

    handle = load_model(library, exchanging)
    with_exchange(ours, transfer, sent, received, images, originals).evaluate(library, handle)
    local.evaluate(library, load_model(library, lj_artifact))
    assert (ours.status, local.status) == (OK, OK), ours.message
    assert ours.energy == pytest.approx(local.energy, rel=1e-14)
    for name in ("forces", "energies", "virials", "centroid"):
        np.testing.assert_allclose(
            np.array(getattr(ours, name)), np.array(getattr(local, name)), atol=1e-14, err_msg=name
        )
    assert [reduce for reduce, _ in calls] == [False, True, False]
    first, gradients, second = (outgoing for _, outgoing in calls)
    total = {
        atom: value
        + sum(1000 * (1 + k) for k, other in enumerate(sent) if other == atom)
        + value * originals.count(atom)
        for atom, value in own.items()
    }
    for k, atom in enumerate(sent):
        if atom in own:
            assert (first[k] == own[atom]).all() and (second[k] == total[atom]).all()
    np.testing.assert_array_equal(gradients, 100 * (1 + np.arange(len(received)))[:, None] * np.ones((1, 2)))
    library.nequip_md_free(handle)


def test_without_exchange(library, exchanging):
    """On one process, with owners or a cell, nothing is transferred, even after an evaluation in which something was."""
    handle, calls = load_model(library, exchanging), []
    atoms = with_exchange(some_atoms(6, centres=[0, 1]), lambda *arguments: calls.append(arguments))
    assert atoms.evaluate(library, handle).status == OK
    assert len(calls) == 3
    alone = some_atoms(6, centres=[0, 1, 2], owner=[0, 1, 2, 1, 0, 1]).evaluate(library, handle)
    boxed = repeated(some_atoms(6), 12.0).evaluate(library, handle)
    assert (alone.status, boxed.status, len(calls)) == (OK, OK, 3), (alone.message, boxed.message)
    library.nequip_md_free(handle)


@pytest.mark.parametrize("fails", [False, True])
def test_failure(fails, library, exchanging):
    """A nonzero return value ends the evaluation, and the handle stays usable."""
    handle = load_model(library, exchanging)
    bad = with_exchange(some_atoms(6, centres=[0, 1]), lambda reduce, *arrays: 31 * (reduce == fails))
    assert bad.evaluate(library, handle).status == INTERNAL
    assert "the caller's function `transfer` returned 31, so ghosts have no features" in bad.message
    alone = some_atoms(6, owner=range(6)).evaluate(library, handle)
    assert (alone.status, alone.message) == (OK, ""), "an evaluation that exchanges nothing"
    good = with_exchange(some_atoms(6, centres=[0, 1]), nothing).evaluate(library, handle)
    assert (good.status, good.message) == (OK, "")
    library.nequip_md_free(handle)


def test_large_forces_are_exchanged_once(library, exchanging, lj_artifact):
    """Forces beyond fixed point, which only one process may have, must not cause another exchange."""
    positions, types, calls = [[0, 0, 0], [1.1, 0, 0], [0, 3.9, 0], [3.5, 3.5, 1]], [1, 1, 2, 1], []
    ours, local = (Atoms(positions, types, centres=[0, 1, 2]) for _ in range(2))
    handle = load_model(library, exchanging)
    with_exchange(ours, lambda reduce, *arrays: calls.append(reduce)).evaluate(library, handle)
    local.evaluate(library, load_model(library, lj_artifact))
    assert ours.status == OK and calls == [False, True, False]
    assert np.abs(np.array(ours.forces)).max() > 1e4
    np.testing.assert_allclose(np.array(ours.forces), np.array(local.forces), rtol=1e-12)
    assert ours.energy == pytest.approx(local.energy, rel=1e-14)
    library.nequip_md_free(handle)


def test_changed_centres(library, exchanging, lj_artifact):
    """With lists_changed = 0, a change between exchange and owners renumbers the nodes."""
    handle = load_model(library, exchanging)
    some_atoms(6, centres=[0, 1, 2], owner=[0, 1, 2, 1, 0, 1]).evaluate(library, handle)
    ours = with_exchange(some_atoms(6, centres=[0, 1, 2]), nothing)
    ours.lists_changed = 0
    ours.evaluate(library, handle)
    local = some_atoms(6, centres=[0, 1, 2]).evaluate(library, load_model(library, lj_artifact))
    assert ours.status == OK and ours.energy == pytest.approx(local.energy, rel=1e-14)
    library.nequip_md_free(handle)


def test_types_change_without_new_lists(library, exchanging):
    """Atoms that leave the model, as in Monte Carlo, move the rows of the others."""
    handle, calls = load_model(library, exchanging), []
    atoms = some_atoms(6, centres=[0, 1, 2, 3])
    with_exchange(atoms, lambda reduce, outgoing, incoming: calls.append(outgoing[:, 0].tolist()), sent=[1, 3])
    assert atoms.evaluate(library, handle).status == OK
    atoms.lists_changed, atoms.types[2] = 0, 0
    assert atoms.evaluate(library, handle).status == OK
    assert (calls[0], calls[3]) == ([2.0, 4.0], [2.0, 3.0])
    library.nequip_md_free(handle)


BAD_EXCHANGES = {
    "no function": ("transfer of exchange is NULL", {"transfer": None}),
    "no size": ("struct_size of nequip_md_exchange is 0", {"struct_size": 0}),
    "a negative number": ("is to have -1 sent; the number must not be negative", {"num_sent": -1}),
    "no array": ("is to have 2 sent, but their array is NULL", {"num_sent": 2, "sent": []}),
    "a ghost is sent": ("sent of exchange names atom 4, which is no centre", {"sent": [1, 4]}),
    "a centre is received": ("received of exchange names atom 1, which is no ghost", {"received": [5, 1]}),
    "no such atom": ("received of exchange names atom 6, which is no ghost", {"received": [6]}),
    "an image of a ghost": (
        "originals of exchange names atom 5, which is no centre",
        {"images": [4], "originals": [5]},
    ),
    "an image that is a centre": (
        "images of exchange names atom 0, which is no ghost",
        {"images": [0], "originals": [1]},
    ),
}


@pytest.mark.parametrize("case", BAD_EXCHANGES)
def test_bad_exchange(case, library, exchanging):
    words, fields = BAD_EXCHANGES[case]
    handle = load_model(library, exchanging)
    fields = {"transfer": nothing, **fields}
    atoms = with_exchange(some_atoms(6, centres=[0, 1]), **fields).evaluate(library, handle)
    assert atoms.status == BAD_INPUT and words in atoms.message, atoms.message
    good = with_exchange(some_atoms(6, centres=[0, 1]), nothing, received=[5]).evaluate(library, handle)
    assert good.status == OK, good.message
    library.nequip_md_free(handle)


def test_refused(library, doctored, exchanging, lj_artifact):
    """An exchange is refused for models that exchange nothing, by their metadata or their code, and together with a cell."""

    def evaluate(path, atoms=None):
        handle = load_model(library, path)
        atoms = with_exchange(atoms or some_atoms(6, centres=[0, 1]), nothing).evaluate(library, handle)
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
