"""The ASE calculator: against the eager model, finite differences, and in molecular dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet

from nequip_md import NequIPMDError, load_checkpoint
from nequip_md.calculators import NequIPMDCalculator
from nequip_md.graph import Structure, build_graph
from nequip_md.model import energy_and_gradient
from support.eager import EagerArtifact, SmoothLennardJones
from support.structures import dense_box, elongated_cell, single_atom, slab, triclinic_crystal, water_box

STRUCTURES = {f.__name__: f for f in (water_box, triclinic_crystal, slab, single_atom, elongated_cell, dense_box)}
STRUCTURES["molecule"] = lambda: molecule("H2O")
STRUCTURES["no atoms"] = lambda: Atoms()


@pytest.fixture(scope="session")
def compiled(small_models):
    """The eager model and the path of its artifact, float64."""
    checkpoint, artifact = small_models("allegro_fp64")
    return load_checkpoint(checkpoint), artifact


def argon(**options) -> NequIPMDCalculator:
    """A calculator of a smooth Lennard-Jones argon that needs no compilation."""
    return NequIPMDCalculator(EagerArtifact(SmoothLennardJones(), ["Ar"], [[8.0]]), **options)


def thermalise(atoms: Atoms, temperature: float, seed: int) -> None:
    """Maxwell-Boltzmann momenta at ``temperature`` (kelvin) without motion of the centre of mass."""
    width = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    momenta = width * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - atoms.get_masses()[:, None] * momenta.sum(0) / atoms.get_masses().sum())


def through_positions(model, atoms: Atoms):
    """Energies, forces and stress by autograd through positions and strain."""
    graph = build_graph(Structure.from_ase(atoms, model.type_names), torch.tensor(model.config.cutoff_matrix()))
    positions = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    i, j = graph.edge_index
    shift = graph.edge_vectors - (positions[j] - positions[i]).detach()
    vectors = (positions[j] - positions[i] + shift) @ (torch.eye(3, dtype=torch.float64) + strain)
    energies = model(vectors, *graph.tensors[1:])
    slope, by_strain = torch.autograd.grad(energies.sum(), (positions, strain), materialize_grads=True)
    return energies.detach().numpy(), -slope.numpy(), by_strain.numpy()


@pytest.mark.parametrize("name", STRUCTURES)
def test_against_eager_model(compiled, name):
    model, path = compiled
    atoms = STRUCTURES[name]()
    atoms.calc = NequIPMDCalculator(path)
    energies, forces, by_strain = through_positions(model, atoms)
    np.testing.assert_allclose(atoms.get_potential_energies(), energies, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-9, atol=1e-11)
    assert atoms.get_potential_energy() == pytest.approx(energies.sum(), rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    if atoms.cell.rank == 3:
        stress = by_strain / atoms.get_volume()
        np.testing.assert_allclose(atoms.get_stress(voigt=False), (stress + stress.T) / 2, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stresses().sum(0), atoms.get_stress(), rtol=1e-10, atol=1e-13)
        assert atoms.get_stresses().shape == (len(atoms), 6)
    if name not in ("single_atom", "no atoms"):
        assert np.abs(forces).max() > 1e-3, "an all-zero force must not pass"


def test_finite_differences(compiled):
    """Forces and all six stress components against the calculator's own energy."""
    atoms = triclinic_crystal()
    atoms.calc = NequIPMDCalculator(compiled[1])
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    step = 1e-4

    def slope(energy_at) -> float:
        """Central difference of fourth order."""
        e = [energy_at(k * step) for k in (-2, -1, 1, 2)]
        return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)

    for atom, axis in ((0, 0), (3, 1), (9, 2), (14, 0)):

        def moved(x, atom=atom, axis=axis):
            other = atoms.copy()
            other.positions[atom, axis] += x
            other.calc = atoms.calc
            return other.get_potential_energy()

        assert slope(moved) == pytest.approx(-forces[atom, axis], abs=1e-8)
    for a in range(3):
        for b in range(a, 3):

            def strained(x, a=a, b=b):
                strain = np.eye(3)
                strain[a, b] += x / 2
                strain[b, a] += x / 2
                other = atoms.copy()
                other.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
                other.calc = atoms.calc
                return other.get_potential_energy()

            assert slope(strained) / atoms.get_volume() == pytest.approx(stress[a, b], abs=1e-9)
    assert np.abs(forces).max() > 0.01 and np.abs(stress).max() > 1e-4


def test_known_values():
    """Two argon atoms against the formula."""
    r, cutoff, epsilon, sigma = 3.9, 8.0, 0.0104, 3.4
    pair = Atoms("Ar2", positions=[[0, 0, 0], [0, r, 0]], calculator=argon())
    expected = 4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6) * (1 - (r / cutoff) ** 2) ** 3
    assert pair.get_potential_energy() == pytest.approx(-4.0 + expected, rel=1e-14)
    pair.positions[1, 1] = 3.0
    assert pair.get_forces()[1, 1] > 0 > pair.get_forces()[0, 1], "atoms that are too close repel each other"


def test_pressure_has_the_right_sign():
    """A compressed crystal pushes: negative stress in ASE's convention."""
    crystal = bulk("Ar", "fcc", a=4.6, cubic=True)
    crystal.calc = argon()
    assert crystal.get_stress()[:3].max() < -1e-3
    crystal.set_cell([6.2] * 3, scale_atoms=True)
    assert crystal.get_stress()[:3].min() > 1e-5


def test_list_is_reused_and_changes_nothing():
    """A run with a skin is the run without one, bit for bit, with a tenth of the searches."""
    trajectories = []
    for skin in (0.0, 1.5):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)
        thermalise(atoms, 200, seed=0)
        atoms.calc = argon(skin=skin)
        VelocityVerlet(atoms, 4 * units.fs).run(60)
        trajectories.append(atoms.positions.copy())
        searches = atoms.calc.neighbors.num_searches
    np.testing.assert_array_equal(*trajectories)
    assert 1 < searches < 8


def test_results_of_other_atoms_are_fresh(compiled):
    """One calculator for structures of other size, species, cell and periodicity, in any order."""
    calculator = NequIPMDCalculator(compiled[1])
    structures = [
        water_box(),
        molecule("H2O"),
        water_box(seed=1),
        triclinic_crystal(),
        slab(),
        triclinic_crystal(("H", "O")),
    ]
    for atoms in [*structures, *reversed(structures)]:
        alone = atoms.copy()
        alone.calc = NequIPMDCalculator(calculator.artifact)
        atoms.calc = calculator
        np.testing.assert_array_equal(atoms.get_forces(), alone.get_forces())
    copied = structures[0].copy()
    copied.calc = calculator
    copied.set_atomic_numbers(copied.numbers[::-1])
    assert copied.get_potential_energy() != structures[0].get_potential_energy()


def test_nve_conserves_energy(compiled):
    """The compiled model in a box of water: total energy stays while kinetic energy does not."""
    atoms = water_box()
    thermalise(atoms, 300, seed=1)
    atoms.calc = NequIPMDCalculator(compiled[1])
    total, kinetic = [], []

    def record():
        kinetic.append(atoms.get_kinetic_energy())
        total.append(atoms.get_potential_energy() + kinetic[-1])

    run = VelocityVerlet(atoms, 0.2 * units.fs)
    run.attach(record)
    run.run(250)
    assert atoms.calc.neighbors.num_searches < 40
    assert np.ptp(kinetic) > 0.05, "the forces must have done work"
    assert np.ptp(total) < 0.01 * np.ptp(kinetic)


@pytest.mark.parametrize(("start", "sign"), [(4.9, -1), (5.8, 1)])
def test_npt_finds_the_density(start, sign):
    """Compressed and stretched argon under a barostat relax to the same volume, through some hundred cells."""
    atoms = bulk("Ar", "fcc", a=start, cubic=True) * (2, 2, 2)
    thermalise(atoms, 20, seed=2)
    atoms.calc = argon(skin=1.0)
    assert sign * atoms.get_stress()[:3].mean() > 5e-4
    # compressibility of the order of solid argon's
    run = NPTBerendsen(
        atoms,
        4 * units.fs,
        temperature_K=20,
        taut=100 * units.fs,
        pressure_au=0.0,
        taup=200 * units.fs,
        compressibility_au=1e-4 / units.bar,
    )
    run.run(300)
    fresh = atoms.copy()
    fresh.calc = argon(skin=0.0)
    np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())
    assert (2 if sign > 0 else 1) <= atoms.calc.neighbors.num_searches < 30
    assert 5.25 < (atoms.get_volume() / 8) ** (1 / 3) < 5.45
    assert abs(atoms.get_stress(include_ideal_gas=True)[:3].mean()) < 3e-4
    assert 5 < atoms.get_temperature() < 60


ERRORS = {
    "unknown element": (lambda: molecule("CH4"), "no type for C; its types are H, O"),
    "periodic without a cell": (lambda: Atoms("O", pbc=True), "cell vector 1, which is zero"),
    "NaN position": (lambda: Atoms("OH", positions=[[0, 0, 0], [0, 0, float("nan")]]), "position of atom 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_structures_are_refused(compiled, case):
    structure, message = ERRORS[case]
    atoms = structure()
    atoms.calc = NequIPMDCalculator(compiled[1])
    with pytest.raises(NequIPMDError, match=message):
        atoms.get_potential_energy()


FLAT = {
    "no cell": ([0, 0, 0], False),
    "two vectors": ([[9, 0, 0], [0, 9, 0], [0, 0, 0]], (True, True, False)),
    "coplanar": ([[9, 0, 0], [0, 9, 0], [9, 9, 0]], (True, True, False)),
    "nearly coplanar": ([[9, 0, 0], [0, 9, 0], [9, 9, 1e-7]], (True, True, False)),
}


@pytest.mark.parametrize("name", ["get_stress", "get_stresses"])
@pytest.mark.parametrize("case", FLAT)
def test_stress_without_a_volume_is_refused(case, name):
    cell, pbc = FLAT[case]
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 4]], cell=cell, pbc=pbc, calculator=argon())
    atoms.get_forces()
    assert not {"stress", "stresses"} & set(atoms.calc.results)
    with pytest.raises(PropertyNotImplementedError, match="no volume"):
        getattr(atoms, name)()
    atoms.set_cell([[9, 0, 0], [0, 9, 0], [0, 1, -20]])
    np.testing.assert_allclose(atoms.get_stresses().sum(0), atoms.get_stress())
    virial = sum(np.outer(x, f) for x, f in zip(atoms.positions, atoms.get_forces()))
    assert atoms.get_stress()[2] == pytest.approx(-virial[2, 2] / (9 * 9 * 20))


def test_results_that_are_not_finite_are_refused():
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 1e-60]], calculator=argon())
    with pytest.raises(NequIPMDError, match="not finite: atoms have probably come too close"):
        atoms.get_forces()


def test_bad_options_are_refused(tmp_path, compiled):
    with pytest.raises(NequIPMDError, match="no such file"):
        NequIPMDCalculator(tmp_path / "absent.pt2")
    with pytest.raises(NequIPMDError, match="at least 0 angstrom"):
        argon(skin=-0.5)
    with pytest.raises(NequIPMDError, match="compiled for cpu and cannot run on cuda"):
        NequIPMDCalculator(compiled[1], device="cuda")
    with pytest.raises(NequIPMDError, match="loaded on cpu, not on cuda"):
        argon(device="cuda")


def test_type_map():
    calculator = NequIPMDCalculator(EagerArtifact(SmoothLennardJones(), ["noble"], [[8.0]]), type_map={"Ar": "noble"})
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 4]])
    atoms.calc = calculator
    expected = atoms.copy()
    expected.calc = argon()
    assert atoms.get_potential_energy() == expected.get_potential_energy()
    unknown = Atoms("ArNe", positions=[[0, 0, 0], [0, 0, 4]])
    unknown.calc = calculator
    with pytest.raises(NequIPMDError, match="no type for Ne; its types are noble: .*give type_map"):
        unknown.get_potential_energy()


def test_single_precision_artifact(small_models):
    """float32 forces are those of float64 weights within rounding; energies are summed in float64."""
    checkpoint, path = small_models("allegro_fp32")
    atoms = water_box()
    atoms.calc = NequIPMDCalculator(path)
    model = load_checkpoint(checkpoint)
    graph = build_graph(Structure.from_ase(atoms, model.type_names), torch.tensor(model.config.cutoff_matrix()))
    energies, _ = energy_and_gradient(model, *graph.tensors)
    np.testing.assert_allclose(atoms.get_potential_energies(), energies.numpy(), rtol=1e-5)
    assert atoms.get_forces().dtype == np.float64
