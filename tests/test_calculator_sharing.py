"""One ASE calculator in several threads, copied, pickled, and in forked processes."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nequip_md import NequIPMDError
from nequip_md.calculators import NequIPMDCalculator
from support.artifacts import with_metadata
from support.structures import triclinic_crystal, water_box


@pytest.fixture(scope="session")
def artifact(small_models):
    return small_models("allegro_fp64")[1]


def results(atoms, calculator) -> list[np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return [np.array(f()) for f in (atoms.get_potential_energy, atoms.get_forces, atoms.get_stress)]


@pytest.mark.parametrize("shared", ["calculator", "copies"])
def test_threads_get_the_results_of_their_own_atoms(artifact, shared):
    """Four threads, twenty structures of equal and other sizes: what one thread gets."""
    structures = [water_box(seed=k)[: 24 - 3 * (k % 3)] for k in range(20)]
    calculator = NequIPMDCalculator(artifact)
    expected = [results(a, NequIPMDCalculator(calculator.artifact)) for a in structures]
    calculators = [calculator if shared == "calculator" else copy.copy(calculator) for _ in range(4)]

    def work(thread: int) -> list:
        return [results(a, calculators[thread]) for a in structures]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
    for rows in found:
        for row, expected_row in zip(rows, expected):
            for value, expected_value in zip(row, expected_row):
                # a new thread has an OpenMP team of its own, of which the last digits depend
                np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-12)
    assert len({float(row[0]) for row in expected}) == 20, "structures must have energies of their own"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_their_own_way(artifact, copied):
    original = NequIPMDCalculator(artifact, skin=0.4, type_map={"Cl": "O"}, guard=False)
    atoms = water_box()
    expected = results(atoms, original)
    other = copied(original)
    assert (other.neighbors.skin, other.type_map, other.guard) == (0.4, {"Cl": "O"}, None)
    assert other.results["energy"] == expected[0] and other.results is not original.results
    moved = triclinic_crystal()
    results(moved, other)
    for calculator in (original, other, original):
        for value, expected_value in zip(results(atoms, calculator), expected):
            np.testing.assert_array_equal(value, expected_value)
    other.results["forces"][:] = 0
    assert np.abs(original.results["forces"]).max() > 0.01


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_atoms_are_copied_with_their_calculator(artifact, copied):
    atoms = water_box()
    atoms.calc = NequIPMDCalculator(artifact)
    energy = atoms.get_potential_energy()
    other = copied(atoms)
    assert other.calc.results["energy"] == energy
    other.positions[0] += 0.1
    assert other.get_potential_energy() != energy == atoms.get_potential_energy()


def test_pickled_path_does_not_depend_on_the_folder(artifact, monkeypatch, tmp_path):
    monkeypatch.chdir(artifact.parent)
    calculator = NequIPMDCalculator(artifact.name)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(calculator)).artifact.path == artifact


@pytest.mark.parametrize("change", [{"checkpoint_sha256": "0" * 64}, {"precision": "fp32"}])
def test_pickle_of_another_model_is_refused(artifact, tmp_path, change):
    path = tmp_path / "model.pt2"
    path.write_bytes(artifact.read_bytes())
    pickled = pickle.dumps(NequIPMDCalculator(path))
    with_metadata(artifact, path, **change)
    with pytest.raises(NequIPMDError, match="model.pt2 holds another model than when this calculator was pickled"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(NequIPMDError, match="no such file"):
        pickle.loads(pickled)


FORKED = """
import multiprocessing, sys
import torch
from nequip_md.calculators import NequIPMDCalculator
from support.structures import water_box

torch.set_num_threads(2)
calculator = NequIPMDCalculator(sys.argv[1])

def energy(seed):
    atoms = water_box(3, seed=seed)
    atoms.calc = calculator
    return atoms.get_potential_energy()

def main():
    expected = [energy(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(energy, range(4)).get(timeout=120)
        threads = pool.apply(torch.get_num_threads)
    assert max(abs(a - b) for a, b in zip(found, expected)) < 1e-10, (found, expected)
    print(threads, torch.get_num_threads(), len(set(expected)))

main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_answer(artifact):
    """After the parent has used two threads, whose OpenMP team a forked process does not have."""
    run = subprocess.run(
        [sys.executable, "-c", FORKED, artifact],
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1", "2", "4"]
