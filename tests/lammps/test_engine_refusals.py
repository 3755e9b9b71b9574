"""Input that the engine refuses, and structures of callers with another version of its header."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int, c_void_p

import numpy as np
import pytest
import torch

from support.engine import (
    BAD_DEVICE,
    BAD_FILE,
    BAD_INPUT,
    BAD_MODEL,
    BAD_RESULT,
    OK,
    Options,
    Results,
    System,
    c_array,
)
from support.engine_calls import some_atoms

BAD_CALLS = {  # change of the arguments, words of the message, atom that it names
    "NaN position": (lambda a: a.positions.__setitem__((3, 1), np.nan), "position of an atom is not finite", 3),
    "infinite position": (lambda a: a.positions.__setitem__((4, 2), np.inf), "position of an atom is not finite", 4),
    "same point": (
        lambda a: a.positions.__setitem__(4, a.positions[2]),
        "is not finite; look for atoms on top of each other",
        2,
    ),
    "type too large": (lambda a: a.types.__setitem__(5, 3), "type 3 lies outside type_map", 5),
    "negative type": (lambda a: a.types.__setitem__(0, -1), "type -1 lies outside type_map", 0),
    "type map": (lambda a: a.type_map.__setitem__(2, 2), "type_map holds 2, the model has types 0 to 1", 1),
    "neighbour too large": (lambda a: a.neighbours[1].append(6), "neighbour is 6", 1),
    "negative neighbour": (lambda a: a.neighbours[2].append(-1), "neighbour is -1", 2),
    "centre twice": (lambda a: a.centres.__setitem__(0, 1), "centres[1] = 1", -1),
    "centre too large": (lambda a: a.centres.__setitem__(0, 6), "centres[0] = 6", -1),
    "no positions": (lambda a: a.overrides.update(positions=None), "positions, types or type_map is NULL", -1),
    "no lists": (lambda a: a.overrides.update(neighbours=None), "neighbours is NULL", -1),
    "negative count": (lambda a: a.overrides.update(num_all=-1), "num_all", -1),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(case, library, load, lj_artifact):
    """Bad arguments are refused with a message, and the handle stays usable."""
    spoil, words, atom = BAD_CALLS[case]
    handle = load(lj_artifact)
    good = some_atoms(6).evaluate(library, handle)
    atoms = some_atoms(6)
    spoil(atoms)
    atoms.evaluate(library, handle)
    assert atoms.status == (BAD_RESULT if case == "same point" else BAD_INPUT)
    assert words in atoms.message and atoms.failed_atom == atom
    again = some_atoms(6).evaluate(library, handle)
    assert (again.status, again.message, again.energy) == (OK, "", good.energy)


class Larger(System):
    """A structure of a later version."""

    _fields_ = [("later", c_int), ("latest", c_int)]


@pytest.mark.parametrize("size", [0, 8, 5000])
@pytest.mark.parametrize("structure", ["system", "results"])
def test_size_that_cannot_be(structure, size, library, load, lj_artifact):
    """Sizes of a field that was not set, that holds the size of a pointer, or that was not initialised."""
    handle, system, results = load(lj_artifact), System(), Results(failed_atom=77)
    (system if structure == "system" else results).struct_size = size
    assert library.nequip_md_evaluate(handle, byref(system), byref(results)) == BAD_INPUT
    expected = f"struct_size of nequip_md_{structure} is {size}; set it to sizeof(nequip_md_{structure})"
    assert expected in library.nequip_md_last_error(handle).decode()
    assert results.failed_atom == (77 if structure == "results" else -1)


def test_older_callers(library, load, lj_artifact):
    """Fields beyond the caller's structure are neither read nor written."""
    handle, atoms = load(lj_artifact), some_atoms(6)
    atoms.overrides |= {"struct_size": System.cell.offset, "memory": 9, "cell": c_array([0.0] * 9, c_double)}
    assert atoms.evaluate(library, handle).status == OK, atoms.message
    del atoms.overrides["struct_size"]
    assert atoms.evaluate(library, handle).status == BAD_INPUT
    forces = c_array([0.0] * 18, c_double)
    results = Results(struct_size=Results.num_candidates.offset, forces=forces, num_edges=-7)
    assert library.nequip_md_evaluate(handle, byref(atoms.system), byref(results)) == BAD_INPUT
    del atoms.overrides["memory"], atoms.overrides["cell"]
    atoms.evaluate(library, handle)
    assert library.nequip_md_evaluate(handle, byref(atoms.system), byref(results)) == OK
    assert (results.energy, results.num_edges, results.struct_size) == (atoms.energy, -7, Results.num_candidates.offset)
    options = Options(struct_size=Options.no_replay.offset, no_guard=1)
    assert (
        library.nequip_md_load(str(lj_artifact).encode(), byref(options), byref(handle2 := c_void_p()), None, 0) == OK
    )
    library.nequip_md_free(handle2)


@pytest.mark.parametrize("later", [0, 1])
def test_newer_callers(later, library, load, lj_artifact):
    """A structure may have fields that the library does not know, but they must be zero."""
    handle, atoms = load(lj_artifact), some_atoms(6)
    energy = atoms.evaluate(library, handle).energy
    larger = Larger(latest=later)
    ctypes.memmove(byref(larger, 8), byref(atoms.system, 8), ctypes.sizeof(System) - 8)
    results = Results(forces=atoms.forces)
    status = library.nequip_md_evaluate(handle, ctypes.cast(byref(larger), POINTER(System)), byref(results))
    if later:
        assert status == BAD_INPUT
        assert b"and uses fields beyond the" in library.nequip_md_last_error(handle)
    else:
        assert status == OK and results.energy == energy


BAD_LOADS = {
    "missing": (BAD_FILE, "cannot open", lambda make: ("/nowhere/model.pt2", {})),
    "other format": (BAD_MODEL, "format version 7", lambda make: (make(format_version="7"), {})),
    "other units": (BAD_MODEL, "'length_unit'", lambda make: (make(length_unit="bohr"), {})),
    "version 1": (
        BAD_MODEL,
        "has format version 1, this engine reads version 2; write it again with: nequip-md-export MODEL -o OUT.pt2",
        lambda make: (make(format_version="1"), {}),
    ),
    "a committee": (BAD_MODEL, "holds 4 networks, and this engine evaluates 1", lambda make: (make(networks="4"), {})),
    "networks not said": (BAD_MODEL, "no metadata key 'networks'", lambda make: (make(networks=None), {})),
    "no network": (BAD_MODEL, "'networks'", lambda make: (make(networks="0"), {})),
    "ghosts not said": (BAD_MODEL, "no metadata key 'ghosts'", lambda make: (make(ghosts=None), {})),
    "ghosts unclear": (BAD_MODEL, "'ghosts'", lambda make: (make(ghosts="perhaps"), {})),
    "options without their size": (
        BAD_INPUT,
        "struct_size of nequip_md_options is 0; set it to sizeof(nequip_md_options)",
        lambda make: (make(), {"struct_size": 0}),
    ),
    "cuda artifact": (BAD_DEVICE, "no such device", lambda make: (make(device="cuda"), {})),
    "cuda wanted": (BAD_DEVICE, "exported for device cpu", lambda make: (make(), {"device": b"cuda"})),
    "unknown device": (BAD_DEVICE, "unknown device 'tpu'", lambda make: (make(), {"device": b"tpu"})),
    "negative threads": (BAD_INPUT, "num_threads is -1", lambda make: (make(), {"num_threads": -1})),
    "negative edges": (BAD_INPUT, "max_edges is -5", lambda make: (make(), {"max_edges": -5})),
    "pieces of NequIP": (
        BAD_INPUT,
        "message passing",
        lambda make: (make(message_passing_layers="2"), {"max_edges": 100}),
    ),
    "negative factor": (BAD_INPUT, "energy_factor", lambda make: (make(), {"energy_factor": -1.0})),
}


@pytest.mark.parametrize("case", BAD_LOADS)
def test_bad_load(case, load, doctored):
    status, words, arguments = BAD_LOADS[case]
    path, options = arguments(doctored)
    if case.startswith("cuda artifact") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    outcome = load(path, **options)
    assert isinstance(outcome, tuple) and outcome[0] == status and words in outcome[1]


def test_number_of_threads(load, lj_artifact):
    status, message = load(lj_artifact, num_threads=1025)
    assert status == BAD_INPUT and "num_threads is 1025; it must be from 0 to 1024" in message


def test_short_message_buffer(library):
    handle, message = c_void_p(), ctypes.create_string_buffer(b"#" * 20, 20)
    assert library.nequip_md_load(b"/nowhere.pt2", None, byref(handle), message, 10) == BAD_FILE
    assert message.raw[:11] == b"cannot op\0" + b"#"
    assert library.nequip_md_load(b"/nowhere.pt2", None, byref(handle), None, 0) == BAD_FILE
    library.nequip_md_free(None)
