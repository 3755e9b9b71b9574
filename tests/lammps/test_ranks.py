"""Allegro and NequIP in float64 on 1 to 8 ranks, in bricks and in tiles: results do not depend on the decomposition."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest

import nequip_md
from nequip_md.graph import Structure, build_graph, forces_from_gradient
from nequip_md.model import energy_and_gradient
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


@pytest.mark.parametrize("place", [0, 72])
def test_message_passing_without_exchange(place, small_models, on_ranks):
    """Energy and force of an atom from a sphere around it, which holds all that they depend on, in open space and on one process.

    The energy depends on atoms within layers x cutoff, the force on those within twice that. Of the places along x, the first is
    at a side of the box, the other where ranks meet.
    """
    model = nequip_md.load_checkpoint(small_models("nequip_fp64")[0])
    reach = 2 * model.config.num_layers * model.config.cutoff
    system = GEOMETRIES["orthogonal"]
    atom = int(np.argsort(system.positions[:, 0])[place])
    lengths = np.array(system.lengths)
    cells = [np.arange(-n, n + 1) for n in np.ceil(reach / lengths).astype(int)]
    shifts = np.stack(np.meshgrid(*cells, indexing="ij"), -1).reshape(-1, 1, 3) * lengths
    positions = (system.positions + shifts).reshape(-1, 3)
    types = np.tile(system.types, len(shifts))
    distance = np.linalg.norm(positions - system.positions[atom], axis=1)
    order = np.argsort(distance)[: (distance < reach).sum()]  # the atom itself is the first one
    sphere = ase.Atoms(["HO"[t - 1] for t in types[order]], positions[order])
    graph = build_graph(Structure.from_ase(sphere, model.type_names), model.config.cutoff_matrix())
    energies, gradient = energy_and_gradient(model, *graph.tensors)
    measured = read_measurement(on_ranks("nequip_fp64", 4), "ort_brick")
    for key, value in (("energies", energies[:1]), ("forces", forces_from_gradient(graph, gradient)[0])):
        scale = np.abs(measured[key]).max()
        np.testing.assert_allclose(
            measured[key][atom], value.detach().numpy(), rtol=0, atol=RELATIVE * scale, err_msg=key
        )
