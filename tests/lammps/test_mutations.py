"""Mutation tests: one fault at a time is built into the engine or the pair style, and the suite's comparisons must detect it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from support.changed_plugin import ChangedPlugin
from support.force_styles import STAGES, ForceStyle
from support.lammps_compare import assert_heat_flux, assert_same
from support.lammps_run import RECORD, measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip


class Mutation(NamedTuple):
    """Replacement of the text ``before`` in ``file`` by ``after``."""

    file: str
    before: str
    after: str


TALLY, KERNELS, PIECES, EXCHANGE, PAIR, PAIR_COMM, PAIR_EXCHANGE, PAIR_MODEL = (
    "engine/src/tally.cpp",
    "engine/src/kernels.h",
    "engine/src/pieces.cpp",
    "engine/src/exchange.cpp",
    "lammps/pair_nequip.cpp",
    "lammps/pair_nequip_comm.cpp",
    "lammps/pair_nequip_exchange.cpp",
    "lammps/pair_nequip_model.cpp",
)
MUTATIONS = {
    "virial with the other sign": Mutation(
        TALLY, "results.virial[k] = energy_factor * total", "results.virial[k] = -energy_factor * total"
    ),
    "no force on neighbours": Mutation(
        KERNELS, "            add_to(forces + 3 * other + k, (Number)-component);\n", ""
    ),
    "no force on ghosts": Mutation(
        PAIR,
        "  if (eflag_global) eng_vdwl += results.energy;",
        "  if (newton)\n    for (int i = atom->nlocal; i < nall; i++) atom->f[i][0] = atom->f[i][1] = atom->f[i][2] = 0.0;\n"
        "  if (eflag_global) eng_vdwl += results.energy;",
    ),
    "types exchanged": Mutation(
        PAIR_MODEL, "type_to_model[i] = t;", "type_to_model[i] = nequip_md_num_types(model) - 1 - t;"
    ),
    "half of each atom's energy": Mutation(
        TALLY,
        "atom_energies[table.centres()[node]] +=\n                energy_factor",
        "atom_energies[table.centres()[node]] +=\n                0.5 * energy_factor",
    ),
    "no reverse communication": Mutation(PAIR_COMM, "  comm->reverse_comm(this);\n", ""),
    "half of each atom's stress": Mutation(
        TALLY,
        "add_array(results.atom_virials, host_virials_, energy_factor)",
        "add_array(results.atom_virials, host_virials_, 0.5)",
    ),
    "heat flux of an edge to its centre": Mutation(
        KERNELS, "add_to(centroids + 9 * other + k,", "add_to(centroids + 9 * (Int64)atom + k,"
    ),
    "energy twice": Mutation(
        TALLY, "results.energy = energy_factor * total", "results.energy = 2 * energy_factor * total"
    ),
    "neighbour lists of long ago": Mutation(PAIR, "system.lists_changed = build;", "system.lists_changed = 0;"),
    "wrong types in a piece": Mutation(PIECES, "table.node_types(first, count,", "table.node_types(0, count,"),
    "virial set, not added, in an overlay": Mutation(
        PAIR, "      virial[k] += results.virial[k];", "      virial[k] = 0.0;"
    ),
}
MESSAGE_MUTATIONS = {
    "gradients of ghosts dropped": Mutation(
        EXCHANGE, "        if (sent.back() >= 0) additions.emplace_back(sent.back(), k);\n", ""
    ),
    "gradients of images dropped": Mutation(
        EXCHANGE, "        additions.emplace_back(original, given_.num_sent + image);\n", ""
    ),
    "features of the layer before": Mutation(
        PAIR_EXCHANGE,
        "  requests.clear();\n",
        "  requests.clear();\n  if (number == 1) return;\n",
    ),
    "ghosts of the wrong owner": Mutation(
        PAIR_EXCHANGE,
        "theirs[owner.rank].push_back(owner.index);",
        "theirs[owner.rank].push_back(owner.index ? owner.index - 1 : 0);",
    ),
    "images without features": Mutation(EXCHANGE, "        if (original < 0) continue;\n", "        continue;\n"),
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> ChangedPlugin:
    mutations = [*MUTATIONS.values(), *MESSAGE_MUTATIONS.values()]
    changed = sorted({mutation.file for mutation in mutations if mutation.file.endswith(".cpp")})
    options = "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DCHANGED_SOURCES={';'.join(changed)}"
    return ChangedPlugin(tmp_path_factory.mktemp("mutations"), *options)


def compare(cache: Path, lj_artifact: Path, eam_artifact: Path, folder: Path) -> None:
    """Some of the suite's comparisons: lj/cut on two ranks, and on one rank in a free cluster, and the heat flux."""
    env = {"XDG_CACHE_HOME": str(cache)}
    for ranks, name, temperature in ((2, "orthogonal", 400), (1, "cluster in a corner", 60)):
        move = (
            f"velocity all create {temperature} 4928459 loop geom\nfix move all nve\nneighbor 0.1 bin\n"
            "neigh_modify every 1 delay 0 check yes\nrun 60\n"
        )
        script = ""
        for newton in ("on", "off"):
            start = "clear\n" + SYSTEMS[name].start(folder, newton)
            for who, pair in (("native", NATIVE), ("ours", nequip(lj_artifact, keywords="max_edges 900"))):
                script += start + pair + measurement(f"{who}_{newton}_start") + move
                script += "run 0 post no" + RECORD.replace("NAME", f"{who}_{newton}_end")
        outcome = run_lammps(script, folder, ranks=ranks, env=env)
        assert outcome.status == 0, outcome.text
        assert str(cache) in outcome.text, "another plugin was loaded"
        for newton in ("on", "off"):
            for when in ("start", "end"):
                ours, native = (read_measurement(folder, f"{who}_{newton}_{when}") for who in ("ours", "native"))
                assert_same(ours, native, f"newton {newton}, {when}", relative=1e-11 if when == "start" else 1e-8)
    assert_heat_flux(eam_artifact, folder, env=env)


def test_without_a_fault(plugin, lj_artifact, eam, tmp_path):
    compare(plugin.build(), lj_artifact, eam[0], tmp_path)


@pytest.mark.parametrize("fault", MUTATIONS)
def test_fault_is_found(fault, plugin, lj_artifact, eam, tmp_path):
    cache = plugin.build(*MUTATIONS[fault])
    with pytest.raises(AssertionError):
        compare(cache, lj_artifact, eam[0], tmp_path)


def compare_messages(cache: Path, style: ForceStyle, artifact: Path, folder: Path) -> None:
    """A model of three layers on two ranks, which sort their atoms, against the eager model."""
    script = style.start(folder, "on", "atom_modify sort 1 2.0") + style.pair(artifact) + style.measure("ours")
    outcome = run_lammps(script, folder, ranks=2, env={"XDG_CACHE_HOME": str(cache)})
    assert outcome.status == 0, outcome.text
    assert str(cache) in outcome.text, "another plugin was loaded"
    result = style.read(folder, "ours")
    for stage in STAGES:
        for key, value in getattr(style, stage).items():
            expected = np.array(value, dtype=float)
            ours = result[stage][key].reshape(expected.shape)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=style.tolerance * np.abs(expected).max())


def test_messages_without_a_fault(plugin, force_styles, artifacts, tmp_path):
    compare_messages(plugin.build(), force_styles["nequip"], artifacts("nequip"), tmp_path)


@pytest.mark.parametrize("fault", MESSAGE_MUTATIONS)
def test_fault_of_messages_is_found(fault, plugin, force_styles, artifacts, tmp_path):
    cache = plugin.build(*MESSAGE_MUTATIONS[fault])
    with pytest.raises(AssertionError):
        compare_messages(cache, force_styles["nequip"], artifacts("nequip"), tmp_path)
