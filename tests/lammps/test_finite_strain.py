"""The pressure tensor against differences of the energy under all six strains, and the per-atom virials against their sum."""

from __future__ import annotations

import numpy as np
import pytest

from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, System, nequip

BAR = 1.6021765e6  # LAMMPS' own value of 1 eV/angstrom^3
STEP = 1e-4


def deformations(system: System, strain: float) -> dict[str, str]:
    """change_box's words for each strain: one row of the cell matrix grows by a multiple of itself or of a lower row."""
    (_, ly, lz), (xy, xz, yz) = system.lengths, system.tilts
    return {
        "xx": f"x scale {1 + strain!r} xy delta {strain * xy!r} xz delta {strain * xz!r}",
        "yy": f"y scale {1 + strain!r} yz delta {strain * yz!r}",
        "zz": f"z scale {1 + strain!r}",
        "xy": f"xy delta {strain * ly!r} xz delta {strain * yz!r}",
        "xz": f"xz delta {strain * lz!r}",
        "yz": f"yz delta {strain * lz!r}",
    }


@pytest.mark.parametrize(("kind", "ranks"), [("eam", 1), ("eam", 2), ("allegro", 2), ("nequip", 2)])
def test_pressure_is_the_derivative_of_the_energy(kind, ranks, eam, small_models, tmp_path):
    artifact, types = (eam[0], "Ar Ne") if kind == "eam" else (small_models(f"{kind}_fp64")[1], "H O")
    system = SYSTEMS["triclinic"]
    start = "clear\n" + system.start(tmp_path) + nequip(artifact, types)
    script = start + measurement("still")
    names = []
    for k in (-2, -1, 1, 2):
        for component, words in deformations(system, k * STEP).items():
            names.append((component, k))
            script += (
                start + f"change_box all {words} remap\nrun 0 post no\n" + f'print "$(pe:%.17g)" file {component}_{k}\n'
            )
    outcome = run_lammps(script, tmp_path, ranks=ranks, limit=240)
    assert outcome.status == 0, outcome.text
    energy = {(c, k): float((tmp_path / f"{c}_{k}").read_text()) for c, k in names}
    volume = np.prod(system.lengths)
    slopes = np.array(
        [
            (energy[c, -2] - 8 * energy[c, -1] + 8 * energy[c, 1] - energy[c, 2]) / (12 * STEP)
            for c in deformations(system, 0.0)
        ]
    )
    measured = read_measurement(tmp_path, "still")
    pressure = measured["pressure"][1:]
    assert np.abs(pressure[3:]).max() > 1.0, "without shear this shows less than it says"
    np.testing.assert_allclose(pressure, -slopes / volume * BAR, rtol=0, atol=1e-6 * np.abs(pressure).max())
    for shares in (measured["virials"], measured["centroid"][:, :6]):
        np.testing.assert_allclose(-shares.sum(0) / volume, pressure, rtol=0, atol=1e-9 * np.abs(pressure).max())
