"""The engine through its C header alone, and the example program of docs/engine.md."""

from __future__ import annotations

import re
import subprocess
from ctypes import byref, c_double
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones as ASELennardJones

from support.engine import (
    BAD_INPUT,
    OK,
)
from support.engine_calls import Atoms, reference, some_atoms

ROOT = Path(__file__).resolve().parents[2]


def test_metadata(library, load, lj_artifact):
    handle = load(lj_artifact)
    assert library.nequip_md_abi_version() == 6
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
    """Energies, forces and virial of none to twenty atoms."""
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
    """Centres in any order; the other atoms are ghosts, which get forces but no energy."""
    atoms = some_atoms(9, centres=centres).evaluate(library, load(lj_artifact))
    assert atoms.status == OK, atoms.message
    energies, forces = reference(lj_model, atoms)
    np.testing.assert_allclose(np.array(atoms.energies)[centres], energies, rtol=1e-12)
    assert all(atoms.energies[k] == 0 for k in range(9) if k not in centres)
    np.testing.assert_allclose(np.array(atoms.forces).reshape(-1, 3), forces, atol=1e-12)


def test_unmapped_types_are_ignored(library, load, lj_artifact):
    """Atoms of type -1 have no effect, wherever they are in the arrays."""
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


def test_mask(library, load, lj_artifact):
    handle = load(lj_artifact)
    atoms = some_atoms(6)
    plain = atoms.evaluate(library, handle).energy
    atoms.neighbours = [[j | (k % 3) << 30 for k, j in enumerate(row)] for row in atoms.neighbours]
    atoms.neighbours = [[j - (1 << 32) if j >= 1 << 31 else j for j in row] for row in atoms.neighbours]
    atoms.mask = 0x1FFFFFFF
    assert atoms.evaluate(library, handle).energy == plain


def test_results_are_added(library, load, lj_artifact):
    """Results are multiplied by the factor of the options, and added to the arrays."""
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
    """They are the model's shifts, in the unit of the results; the caller's lists stay valid."""
    handle = load(lj_artifact, energy_factor=23.0)
    atoms = some_atoms(12).evaluate(library, handle)
    assert [isolated_energy(library, handle, t) for t in (0, 1)] == [-1.5 * 23, -0.25 * 23]
    before, atoms.lists_changed = atoms.energy, 0
    assert atoms.evaluate(library, handle).energy == before
    for kind in (-1, 2):
        assert library.nequip_md_isolated_energy(handle, kind, byref(c_double())) == BAD_INPUT
        assert f"type is {kind}, the model has types 0 to 1".encode() in library.nequip_md_last_error(handle)
    assert library.nequip_md_isolated_energy(handle, 0, None) == BAD_INPUT


def test_centroid_virial_goes_to_the_neighbour(library, load, lj_artifact):
    """For one centre and one ghost, the ghost gets the centroid virial; both get half of the atomic virial."""
    atoms = Atoms([[0, 0, 0], [2, 1.5, 1]], [1, 2], centres=[0]).evaluate(library, load(lj_artifact))
    r, force = atoms.positions[1], np.array(atoms.forces)[3:]
    tensor = np.outer(r, force)
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    nine = np.array([tensor[p] for p in order])
    assert np.abs(nine).min() > 1e-4
    np.testing.assert_allclose(np.array(atoms.centroid).reshape(2, 9), [0 * nine, nine], atol=1e-14)
    np.testing.assert_allclose(np.array(atoms.virials).reshape(2, 6), [nine[:6] / 2] * 2, atol=1e-14)
    np.testing.assert_allclose(atoms.virial, nine[:6], atol=1e-14)


def test_owners(library, load, doctored, lj_artifact):
    """With message passing, edges to an image end at its owner, and images without an owner are refused."""
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


@pytest.mark.parametrize("max_edges", [1, 7, 150, 379, 100_000])
@pytest.mark.parametrize("centres", [None, list(range(3, 17)), [5], []])
def test_pieces_are_exact(library, load, lj_artifact, max_edges, centres):
    """A limit on the edges of one evaluation does not change results."""
    whole = some_atoms(20, centres=centres).evaluate(library, load(lj_artifact))
    pieces = some_atoms(20, centres=centres).evaluate(library, load(lj_artifact, max_edges=max_edges))
    assert (pieces.status, pieces.message) == (OK, "")
    assert pieces.energy == pytest.approx(whole.energy, rel=1e-14)
    for name in ("forces", "energies", "virials", "centroid"):
        np.testing.assert_allclose(
            np.array(getattr(pieces, name)), np.array(getattr(whole, name)), atol=1e-13, err_msg=name
        )


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
    """If ``centres`` is NULL, the first atoms are the centres."""
    handle = load(lj_artifact)
    ours, expected = (some_atoms(9, centres=[0, 1, 2, 3]) for _ in range(2))
    ours.overrides["centres"] = None
    ours, expected = (atoms.evaluate(library, handle) for atoms in (ours, expected))
    assert ours.status == OK and ours.energy == expected.energy != 0
    assert list(ours.forces) == list(expected.forces)


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch without OpenMP")
def test_threads_are_put_back(library, load, lj_artifact):
    before = torch.get_num_threads()
    energies = {n: some_atoms(20).evaluate(library, load(lj_artifact, num_threads=n)).energy for n in (1, 2, 3)}
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(list(energies.values()), energies[1], rtol=1e-14)


def test_no_foreign_symbols(plugin_folder):
    """The plugin uses no symbols of torch, the engine none of LAMMPS."""
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
