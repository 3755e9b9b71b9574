"""The engine through its C header alone, and the example program of docs/engine.md."""

from __future__ import annotations

import copy
import ctypes
import re
import resource
import subprocess
from ctypes import POINTER, byref, c_double, c_int, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones as ASELennardJones

from support.analytic import LennardJones
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
    load_model,
    open_engine,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def library(plugin_folder):
    return open_engine(plugin_folder)


@pytest.fixture
def load(library):
    """``load(path, device=..., ...)``: a handle; or the status and message of a refusal."""
    handles = []

    def make(path, **options):
        loaded = load_model(library, path, **options)
        if not isinstance(loaded, tuple):
            handles.append(loaded)
        return loaded

    yield make
    for handle in handles:
        library.nequip_md_free(handle)


class Atoms:
    """Arguments of one evaluation; attributes may be changed before :meth:`evaluate`."""

    def __init__(self, positions, types, centres=None, type_map=(-1, 0, 1), owner=None):
        self.positions = np.array(positions, dtype=float).reshape(-1, 3)
        self.types, self.type_map, self.owner = list(types), list(type_map), owner
        self.centres = list(range(len(types))) if centres is None else list(centres)
        self.neighbours = [[j for j in range(len(types)) if j != i] for i in range(len(types))]
        self.lists_changed, self.mask = 1, 0
        self.overrides: dict = {}

    def evaluate(self, library, handle):
        n = len(self.types)
        self.forces, self.energies = c_array([0.0] * 3 * n, c_double), c_array([0.0] * n, c_double)
        self.virials, self.centroid = c_array([0.0] * 6 * n, c_double), c_array([0.0] * 9 * n, c_double)
        rows = [c_array(row, c_int) for row in self.neighbours]
        pointers = (POINTER(c_int) * max(n, 1))(*(ctypes.cast(row, POINTER(c_int)) for row in rows))
        fields = dict(
            num_all=n,
            positions=c_array(self.positions.ravel(), c_double),
            types=c_array(self.types, c_int),
            num_caller_types=len(self.type_map),
            type_map=c_array(self.type_map, c_int),
            num_centres=len(self.centres),
            centres=c_array(self.centres, c_int),
            num_neighbours=c_array([len(row) for row in self.neighbours], c_int),
            neighbours=pointers,
            neighbour_mask=self.mask,
            lists_changed=self.lists_changed,
            owner=None if self.owner is None else c_array(self.owner, c_int),
        )
        system = self.system = System(**{k: v for k, v in {**fields, **self.overrides}.items() if v is not None})
        results = Results(
            forces=self.forces, atom_energies=self.energies, atom_virials=self.virials, centroid_virials=self.centroid
        )
        self.status = library.nequip_md_evaluate(handle, byref(system), byref(results))
        self.energy, self.virial, self.failed_atom = results.energy, np.array(results.virial), results.failed_atom
        self.message = library.nequip_md_last_error(handle).decode()
        self.warning = library.nequip_md_last_warning(handle).decode()
        self.warned = results.warned_atom, results.warned_neighbour
        return self


def reference(model: LennardJones, atoms: Atoms):
    """Energies and forces of an open system by a dense sum and autograd."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    types = torch.tensor([atoms.type_map[t] for t in atoms.types], dtype=torch.int64)
    edges = [(i, j) for i in atoms.centres for j in range(len(types)) if j != i]
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    row_ptr = torch.zeros(len(types) + 1, dtype=torch.int64)
    energy = model(x[index[1]] - x[index[0]], index, row_ptr, types)
    energy = energy[atoms.centres]
    gradient = torch.autograd.grad(energy.sum(), x, materialize_grads=True)[0]
    return energy.detach().numpy(), -gradient.numpy()


def some_atoms(count: int, **options) -> Atoms:
    generator = np.random.default_rng(count)
    positions = 3.1 * np.array([[k % 3, k // 3 % 3, k // 9] for k in range(count)], dtype=float).reshape(-1, 3)
    return Atoms(
        positions + generator.uniform(-0.2, 0.2, positions.shape), [1 + k % 2 for k in range(count)], **options
    )


def test_metadata(library, load, lj_artifact):
    handle = load(lj_artifact)
    assert library.nequip_md_abi_version() == 5
    assert library.nequip_md_num_types(handle) == 2
    assert [library.nequip_md_type_name(handle, t) for t in (-1, 0, 1, 2)] == [None, b"Ar", b"Ne", None]
    assert library.nequip_md_cutoff(handle) == 6.0
    assert [library.nequip_md_pair_cutoff(handle, i, j) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (-1, 0))] == [
        6.0,
        5.5,
        5.0,
        0,
        0,
    ]
    assert library.nequip_md_message_passing_layers(handle) == 0
    assert library.nequip_md_metadata(handle, b"kind") == b"lennard-jones"
    assert library.nequip_md_metadata(handle, b"no such key") is None
    assert [library.nequip_md_device_count(d) for d in (b"cpu", b"abacus", None)] == [1, 0, 0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_sizes(count, library, load, lj_artifact, lj_model):
    """From no atom at all to a cluster: energies, forces, virial from positions and forces."""
    atoms = some_atoms(count).evaluate(library, load(lj_artifact))
    assert atoms.status == OK, atoms.message
    energies, forces = reference(lj_model, atoms)
    np.testing.assert_allclose(atoms.energies[:count], energies, rtol=1e-12)
    np.testing.assert_allclose(np.array(atoms.forces[: 3 * count]).reshape(-1, 3), forces, atol=1e-12)
    assert abs(atoms.energy - energies.sum()) < 1e-12
    virial = atoms.positions.T @ forces
    np.testing.assert_allclose(
        atoms.virial, [virial[0, 0], virial[1, 1], virial[2, 2], virial[0, 1], virial[0, 2], virial[1, 2]], atol=1e-12
    )


@pytest.mark.parametrize("centres", [[], [4], [7, 2, 5], [1, 3]])
def test_some_centres(centres, library, load, lj_artifact, lj_model):
    """Any centres in any order; the other atoms are ghosts, which receive forces but no energy."""
    atoms = some_atoms(9, centres=centres).evaluate(library, load(lj_artifact))
    assert atoms.status == OK, atoms.message
    energies, forces = reference(lj_model, atoms)
    np.testing.assert_allclose(np.array(atoms.energies)[centres], energies, rtol=1e-12)
    assert all(atoms.energies[k] == 0 for k in range(9) if k not in centres)
    np.testing.assert_allclose(np.array(atoms.forces).reshape(-1, 3), forces, atol=1e-12)


def test_unmapped_types_are_ignored(library, load, lj_artifact):
    """Type -1: as if the atom were not there, wherever it stands in the arrays."""
    handle = load(lj_artifact)
    full = some_atoms(8)
    full.types = [3 if k in (0, 5) else t for k, t in enumerate(full.types)]
    full.type_map = [-1, 0, 1, -1]
    full.evaluate(library, handle)
    kept = [k for k in range(8) if k not in (0, 5)]
    few = Atoms(full.positions[kept], [full.types[k] for k in kept]).evaluate(library, handle)
    assert full.status == few.status == OK
    np.testing.assert_allclose(np.array(full.energies)[kept], np.array(few.energies), rtol=1e-13)
    np.testing.assert_allclose(
        np.array(full.forces).reshape(-1, 3)[kept], np.array(few.forces).reshape(-1, 3), atol=1e-14
    )


def test_lists_unchanged(library, load, lj_artifact):
    """Positions may move between calls without new lists; changed types are noticed although nobody says so."""
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


def test_mask(library, load, lj_artifact):
    handle = load(lj_artifact)
    atoms = some_atoms(6)
    plain = atoms.evaluate(library, handle).energy
    atoms.neighbours = [[j | (k % 3) << 30 for k, j in enumerate(row)] for row in atoms.neighbours]
    atoms.neighbours = [[j - (1 << 32) if j >= 1 << 31 else j for j in row] for row in atoms.neighbours]
    atoms.mask = 0x1FFFFFFF
    assert atoms.evaluate(library, handle).energy == plain


def test_results_are_added(library, load, lj_artifact):
    """Energy unit by the options' factor; arrays are added to."""
    atoms = some_atoms(6).evaluate(library, load(lj_artifact))
    once = np.array(atoms.forces), np.array(atoms.energies), atoms.energy, atoms.virial
    atoms.evaluate(library, load(lj_artifact, energy_factor=23.0))
    for ours, base in zip((np.array(atoms.forces), np.array(atoms.energies), atoms.energy, atoms.virial), once):
        np.testing.assert_allclose(ours, 23 * base, rtol=1e-14)


def isolated_energy(library, handle, kind: int) -> float:
    energy = c_double()
    assert library.nequip_md_isolated_energy(handle, kind, byref(energy)) == OK, library.nequip_md_last_error(handle)
    return energy.value


def test_isolated_energies(library, load, lj_artifact):
    """The model's shifts, in the unit of the results; the caller's lists outlast the call."""
    handle = load(lj_artifact, energy_factor=23.0)
    atoms = some_atoms(12).evaluate(library, handle)
    assert [isolated_energy(library, handle, t) for t in (0, 1)] == [-1.5 * 23, -0.25 * 23]
    before, atoms.lists_changed = atoms.energy, 0
    assert atoms.evaluate(library, handle).energy == before
    for kind in (-1, 2):
        assert library.nequip_md_isolated_energy(handle, kind, byref(c_double())) == BAD_INPUT
        assert f"type is {kind}, the model has types 0 to 1".encode() in library.nequip_md_last_error(handle)
    assert library.nequip_md_isolated_energy(handle, 0, None) == BAD_INPUT


def test_number_of_threads(load, lj_artifact):
    status, message = load(lj_artifact, num_threads=1025)
    assert status == BAD_INPUT and "num_threads is 1025; it must be from 0 to 1024" in message


def test_centroid_virial_goes_to_the_neighbour(library, load, lj_artifact):
    """One centre, one ghost: the ghost gets the centroid virial, both get half of the other one."""
    atoms = Atoms([[0, 0, 0], [2, 1.5, 1]], [1, 2], centres=[0]).evaluate(library, load(lj_artifact))
    r, force = atoms.positions[1], np.array(atoms.forces)[3:]
    tensor = np.outer(r, force)
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    nine = np.array([tensor[p] for p in order])
    assert np.abs(nine).min() > 1e-4
    np.testing.assert_allclose(np.array(atoms.centroid).reshape(2, 9), [0 * nine, nine], atol=1e-14)
    np.testing.assert_allclose(np.array(atoms.virials).reshape(2, 6), [nine[:6] / 2] * 2, atol=1e-14)
    np.testing.assert_allclose(atoms.virial, nine[:6], atol=1e-14)


BAD_CALLS = {  # what is done to the arguments, words of the message, atom named
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
    """Refused with a sentence; the handle stays usable."""
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


def test_owners(library, load, doctored, lj_artifact):
    """Message passing: an image's edges end at its owner, and images without an owner are refused."""
    handle = load(doctored(message_passing_layers="2"))
    atoms = some_atoms(6, centres=[0, 1, 2], owner=[0, 1, 2, 1, 0, 1]).evaluate(library, handle)
    expected = some_atoms(6, centres=[0, 1, 2]).evaluate(library, load(lj_artifact))
    assert atoms.status == OK, atoms.message
    np.testing.assert_allclose(np.array(atoms.forces), np.array(expected.forces), atol=1e-14)
    for owner, words in (
        ([0, 1, 2, 1, 9, 1], "owner of an atom is 9"),
        ([0, 1, 2, 1, 4, 1], "owner of an atom is 4"),
        (None, "owner"),
    ):
        bad = some_atoms(6, centres=[0, 1, 2], owner=owner).evaluate(library, handle)
        assert bad.status == BAD_INPUT and words in bad.message


class Larger(System):
    """A structure of a later version."""

    _fields_ = [("later", c_int), ("latest", c_int)]


@pytest.mark.parametrize("size", [0, 8, 5000])
@pytest.mark.parametrize("structure", ["system", "results"])
def test_size_that_cannot_be(structure, size, library, load, lj_artifact):
    """The field was forgotten, is that of a pointer, or was never written to."""
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
    """Fields that the library does not know may be there, but not be used."""
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


@pytest.mark.parametrize("max_edges", [1, 7, 150, 379, 100_000])
@pytest.mark.parametrize("centres", [None, list(range(3, 17)), [5], []])
def test_pieces_are_exact(library, load, lj_artifact, max_edges, centres):
    """A limit on the edges of one evaluation changes nothing, whatever the pieces look like."""
    whole = some_atoms(20, centres=centres).evaluate(library, load(lj_artifact))
    pieces = some_atoms(20, centres=centres).evaluate(library, load(lj_artifact, max_edges=max_edges))
    assert (pieces.status, pieces.message) == (OK, "")
    assert pieces.energy == pytest.approx(whole.energy, rel=1e-14)
    for name in ("forces", "energies", "virials", "centroid"):
        np.testing.assert_allclose(
            np.array(getattr(pieces, name)), np.array(getattr(whole, name)), atol=1e-13, err_msg=name
        )


def found_by_engine(atoms: Atoms, skin: float) -> Atoms:
    atoms.overrides |= {"neighbours": None, "num_neighbours": None, "skin": skin}
    return atoms


@pytest.mark.parametrize("centres", [None, [3, 5], []])
@pytest.mark.parametrize("spread", [1.0, 4.0, (1.0, 1.0, 30.0), 2e4])
def test_neighbours_found_by_the_engine(library, load, lj_artifact, centres, spread):
    """Without lists the engine finds all neighbours itself: dense, sparse, in a row of cells, and very far apart."""
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
    """Memory follows the number of atoms, however flat or long the box around them is: here up to 6e5 angstrom."""
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
    """lists_changed = 0: atoms that move into reach within the skin are seen, the list stays."""
    handle = load(lj_artifact)
    atoms = found_by_engine(Atoms([[0, 0, 0], [6.4, 0, 0]], [1, 1]), skin=1.0)
    assert atoms.evaluate(library, handle).status == OK and max(map(abs, atoms.forces)) == 0
    atoms.positions[1, 0] = 5.7
    atoms.lists_changed = 0
    assert atoms.evaluate(library, handle).status == OK and max(map(abs, atoms.forces)) > 0


@pytest.mark.parametrize("change", ["positions", "centres", "types", "type_map", "failure between"])
def test_rebuilt_lists(change, library, load, lj_artifact):
    """What the table keeps from the lists before is right for the new ones, whatever has changed."""
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


def test_large_forces_leave_fixed_point(library, load, lj_artifact, lj_model):
    """Forces on one edge of 1e5 eV/angstrom and more are summed as floating-point numbers, with the same results."""
    atoms = Atoms([[0, 0, 0], [1.1, 0, 0], [0, 3.9, 0], [3.5, 3.5, 1]], [1, 1, 2, 1]).evaluate(
        library, load(lj_artifact)
    )
    energies, forces = reference(lj_model, atoms)
    assert np.abs(forces).max() > 1e4 and atoms.status == OK
    np.testing.assert_allclose(
        np.array(atoms.forces).reshape(-1, 3), forces, rtol=1e-12, atol=1e-12 * np.abs(forces).max()
    )


def test_first_centres(library, load, lj_artifact):
    """Without ``centres`` they are the first atoms."""
    handle = load(lj_artifact)
    ours, expected = (some_atoms(9, centres=[0, 1, 2, 3]) for _ in range(2))
    ours.overrides["centres"] = None
    ours, expected = (atoms.evaluate(library, handle) for atoms in (ours, expected))
    assert ours.status == OK and ours.energy == expected.energy != 0
    assert list(ours.forces) == list(expected.forces)


def repeated(atoms: Atoms, length: float) -> Atoms:
    """In a cubic cell, whose images the engine makes."""
    atoms.overrides |= {"neighbours": None, "num_neighbours": None, "periodic": (1, 1, 1), "skin": 0.4}
    atoms.overrides["cell"] = c_array((np.eye(3) * length).ravel(), c_double)
    return atoms


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
    """Nothing at all, or nothing that the model knows; then atoms, with the same handle."""
    handle = load(lj_artifact)
    nothing = repeated(some_atoms(count), 7.0)
    nothing.types = [0] * count
    assert nothing.evaluate(library, handle).status == OK, nothing.message
    assert nothing.energy == 0 and not any(nothing.forces)
    some = repeated(some_atoms(4), 7.0).evaluate(library, handle)
    assert some.status == OK and some.energy == repeated(some_atoms(4), 7.0).evaluate(library, load(lj_artifact)).energy


def test_contact_with_an_image(library, load, doctored):
    """The guard names atoms of the caller, and the distance across the boundary."""
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


def test_short_message_buffer(library):
    handle, message = c_void_p(), ctypes.create_string_buffer(b"#" * 20, 20)
    assert library.nequip_md_load(b"/nowhere.pt2", None, byref(handle), message, 10) == BAD_FILE
    assert message.raw[:11] == b"cannot op\0" + b"#"
    assert library.nequip_md_load(b"/nowhere.pt2", None, byref(handle), None, 0) == BAD_FILE
    library.nequip_md_free(None)


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch without OpenMP")
def test_threads_are_put_back(library, load, lj_artifact):
    before = torch.get_num_threads()
    energies = {n: some_atoms(20).evaluate(library, load(lj_artifact, num_threads=n)).energy for n in (1, 2, 3)}
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(list(energies.values()), energies[1], rtol=1e-14)


def test_no_foreign_symbols(plugin_folder):
    """The plugin sees no torch, the engine sees no LAMMPS."""
    for file, forbidden in (("nequipplugin.so", r"torch|c10|_ZN2at"), ("libnequip_md_engine.so", r"LAMMPS_NS|MPI_")):
        symbols = subprocess.run(["nm", "-D", plugin_folder / file], capture_output=True, text=True, check=True).stdout
        assert len(symbols.splitlines()) > 10
        found = [line for line in symbols.splitlines() if re.search(forbidden, line)]
        assert not found, found
    exported = [line.split()[-1] for line in symbols.splitlines() if " T " in line]
    assert exported and all(name.startswith("nequip_md_") for name in exported)


def test_example_of_the_manual(plugin_folder, lj_artifact, tmp_path):
    """The C program in docs/engine.md compiles as C99 without warnings and prints the energy and virial of ASE's model."""
    program = re.search(r"```c\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(), re.S).group(1)
    (tmp_path / "crystal.c").write_text(program)
    subprocess.run(
        [
            "gcc",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "crystal.c",
            "-o",
            "crystal",
            f"-I{plugin_folder}/include",
            f"-L{plugin_folder}",
            "-lnequip_md_engine",
            f"-Wl,-rpath,{plugin_folder}",
        ],
        cwd=tmp_path,
        check=True,
    )
    run = subprocess.run([tmp_path / "crystal", lj_artifact], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    printed = dict(re.findall(r"(\w+) += +(\S+)", run.stdout))
    crystal = bulk("Ar", "fcc", a=5.3)
    crystal.calc = ASELennardJones(sigma=3.4, epsilon=0.0104, rc=6.0)  # argon of force_styles/lj.yaml
    assert abs(float(printed["energy"]) - (crystal.get_potential_energy() - 1.5)) < 1e-9
    assert abs(float(printed["virial"]) + crystal.get_stress()[0] * crystal.get_volume()) < 1e-9
    failed = subprocess.run([tmp_path / "crystal", tmp_path / "none.pt2"], capture_output=True, text=True)
    assert failed.returncode == 1 and "cannot open model file" in failed.stderr
