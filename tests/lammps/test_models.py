"""Comparison of real architectures in LAMMPS with the eager model and ASE: all results of a run, on several numbers of ranks."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest

import nequip_md
from nequip_md.graph import Structure, atomic_virials, build_graph, forces_from_gradient, stress_from_gradient
from nequip_md.model import energy_and_gradient
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, System, nequip

BAR = 1.6021765e6  # LAMMPS' own value of 1 eV/angstrom^3, 8e-8 off the exact one
TOLERANCE = {"fp64": 1e-9, "fp32": 2e-5}


def denser(system: System, factor: float = 0.68) -> System:
    """Closer together: about twenty neighbours within the small models' cutoff."""
    scaled = (tuple(factor * x for x in values) for values in (system.lengths, system.tilts))
    return replace(system, positions=factor * system.positions, **dict(zip(("lengths", "tilts"), scaled)))


DENSE = {name: denser(SYSTEMS[name]) for name in ("orthogonal", "triclinic", "box smaller than cutoff")}


def eager(checkpoint, system: System) -> dict[str, np.ndarray]:
    model = nequip_md.load_checkpoint(checkpoint)
    (lx, ly, lz), (xy, xz, yz) = system.lengths, system.tilts
    atoms = ase.Atoms(
        ["HO"[t - 1] for t in system.types], system.positions, cell=[[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]], pbc=True
    )
    graph = build_graph(Structure.from_ase(atoms, model.type_names), model.config.cutoff_matrix())
    energies, gradient = energy_and_gradient(model, *graph.tensors)
    stress = -stress_from_gradient(graph, gradient, atoms.get_volume())[0].numpy() * BAR
    shares = atomic_virials(graph, gradient).numpy()
    shares = (shares + shares.swapaxes(1, 2)) / 2
    order = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])
    return {
        "energy": energies.sum()[None].numpy(),
        "energies": energies[:, None].numpy(),
        "forces": forces_from_gradient(graph, gradient).numpy(),
        "pressure": np.array([np.trace(stress) / 3, *stress[order]]),
        "virials": -shares[:, order[0], order[1]] * BAR,
    }


@pytest.mark.parametrize(
    "name, ranks",
    [("allegro_fp64", 1), ("allegro_fp64", 2), ("allegro_fp64", 4), ("allegro_fp32", 2), ("nequip_fp64", 1)],
)
def test_lammps_equals_eager_and_ase(name, ranks, small_models, plugin_folder, tmp_path):
    """Compare all results; every second run of Allegro is evaluated in pieces, several on each rank."""
    checkpoint, artifact = small_models(name)
    keywords = {"on": "", "off": "max_edges 300" if name.startswith("allegro") else ""}
    script = "clear\n".join(
        system.start(tmp_path / key[:3], newton)
        + nequip(artifact, "H O", keywords=keywords[newton])
        + measurement(f"{key[:3]}_{newton}")
        for key, system in DENSE.items()
        for newton in ("on", "off")
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    tolerance = TOLERANCE[name.split("_")[1]]
    for key, system in DENSE.items():
        reference = eager(checkpoint, system)
        assert np.abs(reference["forces"]).max() > 0.05
        for newton in ("on", "off"):
            ours = read_measurement(tmp_path, f"{key[:3]}_{newton}")
            for quantity, value in reference.items():
                np.testing.assert_allclose(
                    ours[quantity],
                    value,
                    rtol=0,
                    atol=tolerance * np.abs(value).max(),
                    err_msg=f"{key}, newton {newton}, {quantity}",
                )
