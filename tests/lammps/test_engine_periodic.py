"""A C program that has no periodic images of its own: the engine makes them, and ASE's potentials say what is right."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.lj import LennardJones
from ase.stress import voigt_6_to_full_3x3_stress

from nequip_md.calculators import NequIPMDCalculator
from support.structures import elongated_cell, slab, triclinic_crystal, water_box

SUPPORT = Path(__file__).resolve().parents[1] / "support"
EPSILON, SIGMA, CUTOFF, SHIFT = 0.0104, 3.4, 6.0, -1.5  # argon of force_styles/lj.yaml
VOIGT = [0, 1, 2, 5, 4, 3]  # of ASE: xx yy zz yz xz xy; of the engine: xx yy zz xy xz yz
BAD_INPUT = 4


@pytest.fixture(scope="module")
def program(plugin_folder, tmp_path_factory):
    """support/periodic.c, linked to nothing but the engine."""
    path = tmp_path_factory.mktemp("periodic") / "periodic"
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", SUPPORT / "periodic.c", "-o", path]
    engine = [f"-I{plugin_folder}/include", f"-L{plugin_folder}", "-lnequip_md_engine", f"-Wl,-rpath,{plugin_folder}"]
    subprocess.run([*command, *engine], check=True)
    return path


@pytest.fixture
def run(program, tmp_path):
    """``run(model, names, frames, ...)``: what the program prints for each frame; or its status and message."""

    def call(model: Path, names: list[str], frames: list[Atoms], cells=None, changed=None, skin=0.0, periodic=None):
        first = frames[0]
        numbers = [len(first), len(names), len(frames), *map(int, first.pbc if periodic is None else periodic), skin]
        numbers += [names.index(symbol) for symbol in first.symbols]
        for k, atoms in enumerate(frames):
            cell = atoms.cell[:] if cells is None else cells[k]
            numbers += [1 if changed is None else changed[k], int(cell is not None)]
            numbers += list(np.zeros(9) if cell is None else np.ravel(cell)) + list(atoms.positions.ravel())
        (tmp_path / "input").write_text("\n".join(map(repr, map(float, numbers))))
        done = subprocess.run([program, model, tmp_path / "input"], capture_output=True, text=True)
        if done.returncode:
            return done.returncode, done.stderr
        lines = [np.array(line.split(), dtype=float) for line in done.stdout.splitlines()]
        results = []
        for k in range(len(frames)):
            head, *rows = lines[k * (len(first) + 1) : (k + 1) * (len(first) + 1)]
            table = np.array(rows).reshape(-1, 10)
            results.append(
                {
                    "energy": head[0],
                    "edges": int(head[1]),
                    "virial": head[2:],
                    "energies": table[:, 0],
                    "forces": table[:, 1:4],
                    "virials": table[:, 4:],
                }
            )
        return results

    return call


def strained(atoms: Atoms, seed: int) -> Atoms:
    """Sheared and shaken: nothing is zero for a reason of symmetry."""
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def open_along(axis: int) -> Atoms:
    """A slab, whose normal is one of the cell's vectors; ASE needs a vector there, for stress."""
    layers = strained(fcc111("Ar", size=(3, 2, 3), a=5.3, vacuum=4.0), 11)
    order = np.roll([0, 1, 2], axis - 2)
    layers.set_cell(layers.cell[:][order])
    layers.pbc = [k != axis for k in range(3)]
    return layers


def wire() -> Atoms:
    chain = strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat((1, 1, 2)), 12)
    chain.set_cell(chain.cell[:] + np.diag([9.0, 9.0, 0.0]))
    chain.pbc = (False, False, True)
    return chain


def skewed() -> Atoms:
    """The lattice of a usual cell, described by vectors that are nearly parallel."""
    crystal = strained(bulk("Ar", "fcc", a=5.3, cubic=True), 13)
    cell = crystal.cell[:]
    crystal.set_cell([cell[0], cell[1] + 4 * cell[0], cell[2] - 3 * cell[1]])
    return crystal


def left_handed() -> Atoms:
    crystal = strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat((2, 1, 1)), 14)
    crystal.set_cell(crystal.cell[:][[1, 0, 2]])
    return crystal


def scattered() -> Atoms:
    """Atoms that left the cell long ago, each in another direction."""
    crystal = strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2), 15)
    crystal.positions += np.random.default_rng(1).integers(-40, 41, (len(crystal), 3)) @ crystal.cell[:]
    return crystal


def cluster() -> Atoms:
    few = Atoms("Ar7", positions=molecule("C2H6").positions[:7] * 2.6)
    few.rattle(0.1, seed=2)
    few.set_cell([50.0] * 3)
    return few


ARGON = {
    "bulk": lambda: strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat(3), 1),
    "triclinic": lambda: strained(bulk("Ar", "fcc", a=5.3).repeat((3, 4, 3)), 2),
    "one atom, cutoff beyond the cell": lambda: strained(bulk("Ar", "fcc", a=5.3), 3),
    "flat cell": lambda: strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat((1, 5, 1)), 4),
    "left-handed": left_handed,
    "skewed": skewed,
    "scattered": scattered,
    "slab": lambda: open_along(2),
    "slab with its normal first": lambda: open_along(0),
    "slab with its normal second": lambda: open_along(1),
    "wire": wire,
    "cluster": cluster,
}


def by_ase(atoms: Atoms) -> dict:
    atoms = atoms.copy()
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)
    return {
        "energy": atoms.get_potential_energy() + SHIFT * len(atoms),
        "energies": atoms.get_potential_energies() + SHIFT,
        "forces": atoms.get_forces(),
        "virial": -atoms.get_stress()[VOIGT] * atoms.get_volume(),
    }


def assert_equal(ours: dict, expected: dict, tolerance: float = 1e-11) -> None:
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance * scale, err_msg=name)
    np.testing.assert_allclose(ours["virials"].sum(0), ours["virial"], atol=tolerance * np.abs(ours["virial"]).max())


@pytest.mark.parametrize("skin", [0.0, 1.3])
@pytest.mark.parametrize("case", ARGON)
def test_lennard_jones_of_ase(case, skin, run, lj_artifact):
    """Vectors of directions that are not periodic are zero for the engine."""
    atoms = ARGON[case]()
    expected = by_ase(atoms)
    assert np.abs(expected["virial"]).max() > 0.01
    assert len(atoms) == 1 or np.abs(expected["forces"]).max() > 0.01
    cell = np.where(atoms.pbc[:, None], atoms.cell[:], 0.0)
    (ours,) = run(lj_artifact, ["Ar", "Ne"], [atoms], cells=[cell], skin=skin)
    assert_equal(ours, expected)


def test_no_cell(run, lj_artifact):
    """A molecule, with the same program."""
    (ours,) = run(lj_artifact, ["Ar", "Ne"], [cluster()], cells=[None])
    assert_equal(ours, by_ase(cluster()))


STRUCTURES = {
    "water": lambda: water_box(2),
    "triclinic": lambda: triclinic_crystal(repeat=(1, 2, 1)),
    "slab": slab,
    "narrow": elongated_cell,
    "one atom": lambda: strained(bulk("H", "fcc", a=2.9), 3),
}


@pytest.mark.parametrize("model", ["allegro_fp64", "nequip_fp64"])
@pytest.mark.parametrize("case", STRUCTURES)
def test_models(case, model, run, small_models):
    """Two types with their own cutoffs, with and without message passing, beside this package's calculator."""
    _, path = small_models(model)
    atoms = STRUCTURES[case]()
    calculated = atoms.copy()
    calculated.calc = NequIPMDCalculator(path)
    expected = {
        "energy": calculated.get_potential_energy(),
        "energies": calculated.get_potential_energies(),
        "forces": calculated.get_forces(),
    }
    if atoms.cell.rank == 3:
        expected["virial"] = -calculated.get_stress()[VOIGT] * calculated.get_volume()
    (ours,) = run(path, ["H", "O"], [atoms])
    assert_equal(ours, expected, tolerance=1e-10)


def test_virial_of_a_slab_by_strain(run, small_models):
    """dE/d(strain) by differences, in the plane of a slab; outside of it there is no cell to strain."""
    _, path = small_models("nequip_fp64")
    layers = slab()
    step = 1e-4
    directions = [(0, 0), (1, 1), (0, 1)]
    frames = []
    for i, j in directions:
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            frames.append(layers.copy())
            frames[-1].set_cell(layers.cell[:] @ strain, scale_atoms=False)
            frames[-1].positions = layers.positions @ strain
    energies = [result["energy"] for result in run(path, ["H", "O"], frames)]
    (ours,) = run(path, ["H", "O"], [layers])
    virial = voigt_6_to_full_3x3_stress(ours["virial"][VOIGT])
    for k, (i, j) in enumerate(directions):
        derivative = (energies[2 * k] - energies[2 * k + 1]) / (2 * step)
        assert -virial[i, j] == pytest.approx(derivative, rel=1e-5, abs=1e-5), (i, j)


@pytest.mark.parametrize("periodic", [(1, 1, 1), (1, 1, 0)])
def test_kept_lists(periodic, run, lj_artifact):
    """While lists_changed is 0, atoms and cell move within the skin; then atoms are wrapped, and lists made anew."""
    start = strained(bulk("Ar", "fcc", a=5.3, cubic=True).repeat((2, 2, 1)), 5)
    start.pbc = periodic
    rng = np.random.default_rng(3)
    frames = [start]
    for _ in range(3):
        atoms = frames[-1].copy()
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-0.005, 0.005, (3, 3))), scale_atoms=True)
        atoms.positions += rng.uniform(-0.08, 0.08, atoms.positions.shape)
        frames.append(atoms)
    wrapped = frames[-1].copy()
    wrapped.positions += 0.6 * wrapped.cell[0]
    wrapped.wrap()
    frames.append(wrapped)
    results = run(lj_artifact, ["Ar", "Ne"], frames, changed=[1, 0, 0, 0, 1], skin=1.5)
    for ours, atoms in zip(results, frames):
        assert_equal(ours, by_ase(atoms))
    assert len({ours["edges"] for ours in results[:4]}) > 1, "no pair came into reach"
    assert results[3]["energy"] == pytest.approx(results[4]["energy"], rel=1e-12)


def test_other_boundaries_need_no_word(run, lj_artifact):
    """With and without a cell in turn, lists_changed 0: the engine sees that images come and go."""
    atoms = strained(bulk("Ar", "fcc", a=5.3, cubic=True), 6)
    alone = atoms.copy()
    alone.pbc = False
    cells = [atoms.cell[:], atoms.cell[:]]
    results = run(lj_artifact, ["Ar", "Ne"], [atoms, atoms], cells=cells, changed=[0, 0])
    for ours in results:
        assert_equal(ours, by_ase(atoms))
    results = run(lj_artifact, ["Ar", "Ne"], [alone, alone], cells=[cells[0], None], changed=[0, 0], periodic=(0, 0, 0))
    for ours in results:
        assert_equal(ours, by_ase(alone))


X, Y, Z = np.eye(3) * 12.0
BAD_CELLS = {  # cell, periodic, words of the message
    "zero vector": ([X, 0 * Y, Z], (1, 1, 1), "the cell has no volume"),
    "all zero": ([0 * X, 0 * Y, 0 * Z], (0, 0, 1), "the cell has no volume"),
    "parallel": ([X, 2 * X, Z], (1, 1, 0), "the cell has no volume"),
    "in one plane": ([X, Y, X + Y + 1e-9 * Z], (1, 1, 1), "set periodic to 0 along directions without"),
    "not a number": ([X, Y, Z * np.nan], (1, 1, 1), "cell vector 2 is not finite"),
    "infinite": ([np.array([np.inf, 0.0, 0.0]), Y, Z], (1, 0, 0), "cell vector 0 is not finite"),
    "too small": ([X * 1e-7, Y * 1e-7, Z * 1e-7], (1, 1, 1), "the cell is so small that there are"),
    "no cell": (None, (0, 1, 0), "periodic is set but cell is NULL"),
    "far away": ([X * 1e-10, Y, Z], (1, 0, 0), "more than 1e9 cells away from the cell; .* .atom 1."),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_bad_cells(case, run, lj_artifact):
    cell, periodic, words = BAD_CELLS[case]
    atoms = Atoms("Ar2", positions=[[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    status, message = run(lj_artifact, ["Ar", "Ne"], [atoms], cells=[cell], periodic=periodic)
    assert status == BAD_INPUT
    assert re.search(words, message), message
