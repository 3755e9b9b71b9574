"""The thermal conductivity example: its potential is lj/cut, its input runs, and its script integrates what it says."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.lammps_run import run_lammps

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lammps" / "thermal_conductivity"
SHORT = (
    "-var",
    "cells",
    "3",
    "-var",
    "melt",
    "50",
    "-var",
    "equilibrate",
    "50",
    "-var",
    "steps",
    "100",
    "-var",
    "samples",
    "10",
)


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("plot_thermal_conductivity", EXAMPLE / "plot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_runs(plugin_folder, tmp_path):
    """Shortened; and once more with LAMMPS' own style, for which heat/flux has the same numbers."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("out"))
    (folder / "out").mkdir()
    subprocess.run([sys.executable, "argon.py", "out/argon.pt2"], cwd=folder, check=True)
    text = (folder / "in.argon").read_text()
    native = text.replace("pair_style      nequip", "pair_style lj/cut 8.5\npair_modify shift yes")
    native = native.replace("pair_coeff      * * out/argon.pt2 Ar", "pair_coeff 1 1 0.010324 3.405")
    correlations = []
    for script in (text, native):
        outcome = run_lammps(script, folder, ranks=2, arguments=SHORT)
        assert outcome.status == 0, outcome.text
        correlations.append(np.loadtxt(folder / "out" / "hfacf.dat", skiprows=4)[:, 3:6])
    assert correlations[0].shape == (10, 3) and (np.abs(correlations[1][0]) > 1e-3).all()
    np.testing.assert_allclose(correlations[0], correlations[1], rtol=0, atol=1e-5 * np.abs(correlations[1]).max())
    drawn = subprocess.run([sys.executable, "plot.py"], cwd=folder, capture_output=True, text=True)
    assert "21 samples: kappa =" in drawn.stdout, drawn.stdout + drawn.stderr
    assert (folder / "out" / "thermal_conductivity.png").stat().st_size > 10_000


def test_integral(plot):
    """<J(0) J(t)> = c exp(-t/tau) has the integral c tau."""
    times = np.arange(0, 40, 0.01)
    correlation = np.exp(-times / 2.0)[:, None] * [3.0, 4.0, 5.0]
    kappa = plot.conductivity(correlation, 0.01, temperature=90.0, volume=12000.0)
    expected = 4.0 * 2.0 * 1.602176634e-19 * 1e22 / (8.617333262e-5 * 90.0**2 * 12000.0)
    np.testing.assert_allclose(kappa[-1], expected, rtol=1e-5)
    assert kappa[0] == 0.0
