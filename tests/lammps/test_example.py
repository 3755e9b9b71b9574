"""The water example: its checkpoint is what its configuration says, is as accurate as stated, and runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms

import nequip_md
from nequip_md.checkpoint import read_info
from nequip_md.export import export_checkpoint
from nequip_md.graph import Structure, batch_graphs, build_graph, forces_from_gradient
from nequip_md.model import energy_and_gradient
from support.lammps_run import run_lammps

WATER = Path(__file__).resolve().parents[2] / "examples" / "lammps" / "water"


def test_configuration_of_the_checkpoint():
    stated = yaml.safe_load((WATER / "train.yaml").read_text())["model"]
    trained = read_info(WATER / "water.nqmd").config.model_dump()
    assert {key: trained[key] for key in stated} == stated
    assert (WATER / "water.nqmd").stat().st_size < 1e6


def test_force_error_on_the_test_data(data_folder):
    """At most 50 meV/angstrom, and what README states, on every fourth frame."""
    model = nequip_md.load_checkpoint(WATER / "water.nqmd")
    stated = read_info(WATER / "water.nqmd").training["metrics"]["test"]["force_rmse"]
    errors = []
    for atoms in ase.io.read(data_folder / "water" / "test.extxyz", "::4"):
        graph = batch_graphs([build_graph(Structure.from_ase(atoms, model.type_names), model.config.cutoff_matrix())])
        _, gradient = energy_and_gradient(model, *graph.tensors)
        errors.append(forces_from_gradient(graph, gradient).numpy() - atoms.get_forces())
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert rmse < 0.050
    assert abs(rmse - stated) < 0.003


@pytest.fixture(scope="session")
def water_artifact(made_once) -> Path:
    """The example's checkpoint, compiled."""
    return made_once(
        "water.pt2", lambda path: export_checkpoint(WATER / "water.nqmd", path, device="cpu", precision="fp32")
    )


def test_example_runs(plugin_folder, water_artifact, tmp_path):
    """The example's own input and picture, shortened, from a copy of its folder."""
    folder = tmp_path / "water"
    shutil.copytree(WATER, folder, ignore=shutil.ignore_patterns("out"))
    (folder / "out").mkdir()
    shutil.copy(water_artifact, folder / "out" / "water.pt2")
    outcome = run_lammps(
        (folder / "in.water").read_text(),
        folder,
        ranks=2,
        limit=300,
        arguments=("-var", "steps_small", "400", "-var", "steps_large", "20"),
    )
    assert outcome.status == 0, outcome.text
    drawn = subprocess.run(
        [sys.executable, "plot.py"], cwd=folder, capture_output=True, text=True, env=dict(os.environ)
    )
    assert "192 atoms, 0.20 ps: g_OO peak" in drawn.stdout, drawn.stderr
    assert "192 atoms" not in drawn.stderr, (
        drawn.stderr
    )  # a sane liquid; 20 steps of the large box are too few to judge
    assert (folder / "out" / "water.png").stat().st_size > 10_000

    outcome = run_lammps((folder / "in.real").read_text(), folder, arguments=("-var", "steps", "20"))
    assert outcome.status == 0, outcome.text
    metal, real = (first_row(folder / "out" / name) for name in ("log.192", "log.real"))
    assert real["PotEng"] == pytest.approx(
        23.060549 * metal["PotEng"], rel=1e-7
    )  # kcal/mol and eV, printed with eight digits
    assert real["Press"] == pytest.approx(metal["Press"] / 1.01325, rel=1e-4)  # atm and bar


def cluster() -> list[Atoms]:
    """Four molecules of the example's water, twice."""
    water = ase.io.read(WATER / "water.data", format="lammps-data", atom_style="atomic", Z_of_type={1: 8, 2: 1})
    oxygens = np.flatnonzero(water.numbers == 8)
    first = oxygens[np.argsort(water.get_distances(oxygens[0], oxygens, mic=True))[:4]]
    chosen = []
    for oxygen in first:
        chosen += [oxygen, *np.argsort(water.get_distances(oxygen, range(len(water)), mic=True))[1:3]]
    vectors = water.get_distances(oxygens[0], chosen, mic=True, vector=True)
    return [Atoms(water.symbols[chosen], vectors)] * 2


def test_molecule_runs(plugin_folder, water_artifact, tmp_path):
    """The example of a molecule, shortened, with molecules of water."""
    folder = tmp_path / "molecule"
    shutil.copytree(WATER.parent / "molecule", folder, ignore=shutil.ignore_patterns("out"))
    (folder / "out").mkdir()
    shutil.copy(water_artifact, folder / "out" / "molecule.pt2")
    ase.io.write(tmp_path / "frames.extxyz", cluster())

    def python(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "molecule.py", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=dict(os.environ))

    assert python("prepare", tmp_path / "frames.extxyz").returncode == 0
    outcome = run_lammps((folder / "in.molecule").read_text(), folder, arguments=("-var", "steps", "600"))
    assert outcome.status == 0, outcome.text
    log = folder / "out" / "log.molecule"
    lines = log.read_text().splitlines(keepends=True)
    row = next(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"]) + 2
    log.write_text("".join([*lines[:row], "WARNING: atoms come close\n", *lines[row:]]))
    drawn = python("draw", tmp_path / "frames.extxyz", 300)
    assert drawn.stdout.startswith("0.3 ps: ") and "longest bond 1." in drawn.stdout, drawn.stderr
    assert "bond" not in drawn.stderr and (folder / "out" / "molecule.png").stat().st_size > 10_000
    drawn = python("draw", tmp_path / "frames.extxyz", 1200)
    assert drawn.returncode == 1 and "error: mean temperature" in drawn.stderr


def first_row(log: Path) -> dict[str, float]:
    """The thermodynamic output of a run's first step."""
    lines = log.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    return dict(zip(lines[start].split(), map(float, lines[start + 1].split())))
