"""Comparison of measurements by LAMMPS with pair style nequip and with its own pair styles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.lammps_run import run_lammps
from support.lammps_systems import SYSTEMS, nequip

RELATIVE = 1e-11
"""Tolerance relative to the largest value of a quantity; both sides sum in float64, in different orders."""
SHIFTS = {1: -1.5, 2: -0.25}
"""Energies of isolated atoms by LAMMPS type, which analytic artifacts include and LAMMPS' own styles do not."""
QUANTITIES = ("energy", "pressure", "forces", "energies", "virials", "centroid")
MANY_BODY = QUANTITIES[:-1]
"""Of many-body potentials, whose heat flux LAMMPS' own styles divide among atoms in another way."""
BY_MESSAGES = ("energy", "pressure", "forces", "virials")
"""Of potentials with message passing, whose energies of atoms are others than those of LAMMPS' own style."""


def assert_same(
    ours: dict,
    reference: dict,
    what: str = "",
    relative: float = RELATIVE,
    quantities=QUANTITIES,
    shifts: dict = SHIFTS,
):
    """Assert that every quantity is equal, relative to its largest value, after subtraction of the isolated atoms' energies."""
    shifts = np.array([shifts[t] for t in ours["types"]])
    for key in quantities:
        value = ours[key] - {"energy": shifts.sum(), "energies": shifts[:, None]}.get(key, 0.0)
        scale = max(np.abs(reference[key]).max(), np.abs(ours[key]).max())
        np.testing.assert_allclose(value, reference[key], rtol=0, atol=relative * scale, err_msg=f"{what} {key}")


HEAT_FLUX = """
velocity all create 300 87287 loop geom
timestep 0.0001
fix move all nve
compute ke all ke/atom
compute pe all pe/atom
compute stress all centroid/stress/atom NULL virial
compute flux all heat/flux ke pe stress
variable x atom x*(c_ke+c_pe)
variable y atom y*(c_ke+c_pe)
variable z atom z*(c_ke+c_pe)
compute moment all reduce sum v_x v_y v_z
thermo 1
thermo_style custom step c_moment[1] c_moment[2] c_moment[3] c_flux[1] c_flux[2] c_flux[3]
thermo_modify format float %.15g
run 4
"""


def assert_heat_flux(
    artifact: Path, folder: Path, *, ranks: int = 1, newton: str = "on", types: str = "Ar Ne", env: dict | None = None
) -> None:
    """J = d/dt sum_i r_i e_i for a free cluster in motion: compute heat/flux against differences in time."""
    script = SYSTEMS["cluster in a corner"].start(folder, newton) + nequip(artifact, types) + HEAT_FLUX
    outcome = run_lammps(script, folder, ranks=ranks, env=env)
    assert outcome.status == 0, outcome.text
    rows = np.array(
        [line.split() for line in outcome.text.splitlines() if len(line.split()) == 7 and line.split()[0].isdigit()],
        dtype=float,
    )
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4], outcome.text
    moment, flux = rows[:, 1:4], rows[:, 4:]
    # five-point formula, step 1e-4 ps
    slope = (moment[0] - 8 * moment[1] + 8 * moment[3] - moment[4]) / (12 * 1e-4)
    np.testing.assert_allclose(flux[2], slope, rtol=0, atol=2e-6 * np.abs(slope).max())
