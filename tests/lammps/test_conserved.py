"""Energies that dynamics conserves: a wrong force, virial or energy makes them drift."""

from __future__ import annotations

import numpy as np
import pytest

from support.lammps_run import run_lammps
from support.lammps_systems import SYSTEMS, nequip

START = """
velocity all create 60 4928459 loop geom
neighbor 0.5 bin
timestep 0.001
fix move all {ensemble}
thermo 5
thermo_style custom step etotal econserve vol
thermo_modify format float %.15g
run 300
"""
ENSEMBLES = {
    "NVE": "nve",
    "NVT": "nvt temp 60 60 0.1",
    "NPT": "npt temp 60 60 0.1 iso 0 0 0.5",
    "NPT, all six components": "npt temp 60 60 0.1 tri 0 0 0.5",
}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_conserved_quantity(ensemble, lj_artifact, plugin_folder, tmp_path):
    """What thermostat and barostat exchange with the atoms is a hundred times what the sum of all drifts and fluctuates by."""
    system = SYSTEMS["triclinic"]
    script = system.start(tmp_path) + nequip(lj_artifact) + START.format(ensemble=ENSEMBLES[ensemble])
    outcome = run_lammps(script, tmp_path, ranks=2)
    assert outcome.status == 0, outcome.text
    rows = np.array(
        [line.split() for line in outcome.text.splitlines() if len(line.split()) == 4 and line.split()[0].isdigit()],
        dtype=float,
    )
    assert len(rows) == 61
    energy, conserved, volume = rows[:, 1], rows[:, 2], rows[:, 3]
    exchanged = 0.01 * len(system.types) * 0.0259 if ensemble == "NVE" else np.ptp(energy)
    assert np.ptp(conserved) < 0.01 * exchanged
    if ensemble != "NVE":
        assert exchanged > 1e-3 * len(system.types)
    if ensemble.startswith("NPT"):
        assert np.ptp(volume) > 0.01 * volume[0]
