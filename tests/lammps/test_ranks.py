"""Allegro and NequIP in float64 on 1 to 8 ranks, in bricks and in tiles: results do not depend on the decomposition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.lammps_run import PER_ATOM, measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, System, nequip

RELATIVE = 1e-10
"""Tolerance relative to the largest value; the order of summation changes with the division."""
COMMUNICATION = {"brick": ("", ""), "tiled": ("comm_style tiled", "balance 1.0 rcb")}


def closer(name: str, factor: float = 0.68) -> System:
    """About twenty neighbours within the small models' cutoff; processors are LAMMPS' own choice."""
    system = SYSTEMS[name]
    lengths, tilts = (tuple(factor * x for x in values) for values in (system.lengths, system.tilts))
    before = system.before.split("\n")[0] if system.before.startswith("boundary") else ""
    return replace(system, positions=factor * system.positions, lengths=lengths, tilts=tilts, before=before)


GEOMETRIES = {
    name: closer(name) for name in ("orthogonal", "triclinic", "box smaller than cutoff", "cluster in a corner")
}

# LAMMPS has no tiles for boxes shorter than its communication cutoff
DIVISIONS = [
    (name, communication)
    for name in GEOMETRIES
    for communication in COMMUNICATION
    if (name, communication) != ("box smaller than cutoff", "tiled")
]


@pytest.fixture(scope="module")
def on_ranks(small_models, plugin_folder, tmp_path_factory):
    """``on_ranks(model, ranks)``: the folder where one start of LAMMPS has measured every division of every geometry."""
    folders = {}

    def get(model: str, ranks: int):
        if (model, ranks) not in folders:
            folders[model, ranks] = folder = tmp_path_factory.mktemp(f"{model}_{ranks}")
            script = ""
            for name, communication in DIVISIONS:
                system, (before, after) = GEOMETRIES[name], COMMUNICATION[communication]
                divided = replace(system, before=f"{system.before}\n{before}", after=after)
                newton = "on" if communication == "brick" else "off"
                script += "clear\n" + divided.start(folder / name[:3], newton) + nequip(small_models(model)[1], "H O")
                script += measurement(f"{name[:3]}_{communication}")
            outcome = run_lammps(script, folder, ranks=ranks, limit=240)
            assert outcome.status == 0, outcome.text
        return folders[model, ranks]

    return get


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("geometry, communication", DIVISIONS)
@pytest.mark.parametrize("model", ["allegro_fp64", "nequip_fp64"])
def test_numbers_do_not_depend_on_ranks(model, geometry, ranks, communication, on_ranks):
    reference = read_measurement(on_ranks(model, 1), f"{geometry[:3]}_brick")
    result = read_measurement(on_ranks(model, ranks), f"{geometry[:3]}_{communication}")
    assert np.abs(reference["forces"]).max() > 0.05
    for key in ("energy", "pressure", *PER_ATOM):
        scale = np.abs(reference[key]).max()
        np.testing.assert_allclose(result[key], reference[key], rtol=0, atol=RELATIVE * scale, err_msg=key)
