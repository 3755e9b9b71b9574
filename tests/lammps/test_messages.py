"""Models with message passing on several MPI processes: beside other pair styles, in partitions, and what they send."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.lammps_compare import BY_MESSAGES, assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip

RELATIVE = 1e-9
NEWTON = ("on", "off")
PAIRS = "pair_coeff 1 2 {style}\npair_coeff 2 2 {style}\n"
LJ = "pair_coeff 1 1 lj/cut 0.01 2.5\npair_coeff 1 2 lj/cut 0.01 2.4\npair_coeff 2 2 lj/cut 0.02 2.3\n"

# the style's name and file stand for eam/alloy with its tables, and for the pair style with the artifact
BESIDE_OTHERS = {
    "NULL beside a style for the rest": "pair_style hybrid STYLE lj/cut 6.0\npair_coeff * * STYLE FILE Ar NULL\n"
    + PAIRS.format(style="lj/cut 0.01 2.4"),
    "NULL beside nothing": "pair_style hybrid STYLE zero 6.0\npair_coeff * * STYLE FILE Ar NULL\n"
    + PAIRS.format(style="zero"),
    "overlay": "pair_style hybrid/overlay lj/cut 5.0 STYLE\npair_coeff * * STYLE FILE Ar Ne\n" + LJ,
    "overlay that reaches farther": "pair_style hybrid/overlay lj/cut 9.0 STYLE\npair_coeff * * STYLE FILE Ar Ne\n"
    + LJ,
    "scaled": "pair_style hybrid/scaled 0.5 STYLE 1.5 lj/cut 6.0\npair_coeff * * STYLE FILE Ar Ne\n" + LJ,
    "twice": "pair_style hybrid/overlay STYLE STYLE\npair_coeff * * STYLE 1 FILE Ar Ne\npair_coeff * * STYLE 2 FILE Ne Ar\n",
}


@pytest.fixture(scope="module")
def beside_others(eam_messages, tmp_path_factory):
    """``beside_others(ranks)``: the folder where every input of ``BESIDE_OTHERS`` has been measured, with both styles."""
    artifact, native = eam_messages
    tables = native.split()[-3]
    folders = {}

    def get(ranks: int):
        if ranks not in folders:
            folders[ranks] = folder = tmp_path_factory.mktemp(f"beside_{ranks}")
            script = ""
            for k, lines in enumerate(BESIDE_OTHERS.values()):
                for newton in NEWTON:
                    for who, style, file in (("native", "eam/alloy", tables), ("ours", "nequip", f'"{artifact}"')):
                        script += "clear\n" + SYSTEMS["orthogonal"].start(folder, newton)
                        script += lines.replace("STYLE", style).replace("FILE", str(file))
                        script += measurement(f"{who}_{k}_{newton}")
            outcome = run_lammps(script, folder, ranks=ranks)
            assert outcome.status == 0, outcome.text
        return folders[ranks]

    return get


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", BESIDE_OTHERS)
def test_beside_other_styles(case, ranks, beside_others):
    """Forces, pressure and virials (energies differ by constants)."""
    for newton in NEWTON:
        name = f"{list(BESIDE_OTHERS).index(case)}_{newton}"
        reference, result = (read_measurement(beside_others(ranks), f"{who}_{name}") for who in ("native", "ours"))
        for key in ("forces", "pressure", "virials"):
            scale = np.abs(reference[key]).max()
            assert scale > 1e-3
            np.testing.assert_allclose(
                result[key], reference[key], rtol=0, atol=RELATIVE * scale, err_msg=f"newton {newton} {key}"
            )


@pytest.mark.parametrize("newton", NEWTON)
def test_ranks_without_atoms_of_the_model(newton, eam_messages, tmp_path):
    """Of four ranks along x one or two have atoms of NULL types alone, and take part in every exchange."""
    artifact, native = eam_messages
    system = replace(SYSTEMS["orthogonal"], before="processors 4 1 1")
    types = np.where(system.positions[:, 0] < 0.4 * system.lengths[0], 1, 2)
    start = "clear\n" + system.start(tmp_path, newton, types=types)
    lines = BESIDE_OTHERS["NULL beside nothing"]
    script = "".join(
        start + lines.replace("STYLE", style).replace("FILE", file) + measurement(who)
        for who, style, file in (("native", "eam/alloy", native.split()[-3]), ("ours", "nequip", f'"{artifact}"'))
    )
    outcome = run_lammps(script, tmp_path, ranks=4)
    assert outcome.status == 0, outcome.text
    reference, result = (read_measurement(tmp_path, who) for who in ("native", "ours"))
    assert_same(result, reference, "", RELATIVE, BY_MESSAGES, {1: -1.5, 2: 0.0})


def test_partitions_of_several_ranks(eam_messages, tmp_path):
    """Two LAMMPS worlds of two ranks each, of different systems: features stay in their world."""
    artifact, native = eam_messages
    names = {"a": "orthogonal", "b": "triclinic"}
    for world, name in names.items():
        (tmp_path / f"start.{world}").write_text(SYSTEMS[name].start(tmp_path / world))
    script = "variable w world a b\ninclude start.${w}\n" + nequip(artifact) + measurement("${w}")
    outcome = run_lammps(script, tmp_path, ranks=4, arguments=("-partition", "2x2"))
    assert outcome.status == 0, outcome.text
    for world, name in names.items():
        alone = run_lammps(SYSTEMS[name].start(tmp_path) + native + measurement("native"), tmp_path / name)
        assert alone.status == 0, alone.text
        reference = read_measurement(tmp_path / name, "native")
        assert_same(read_measurement(tmp_path, world), reference, name, RELATIVE, BY_MESSAGES)


def test_one_layer_sends_nothing(doctored, tmp_path):
    """A single layer needs types of ghosts alone, so its artifact asks for no exchange and runs on several ranks without one."""
    start = SYSTEMS["orthogonal"].start(tmp_path)
    script = start + NATIVE + measurement("native") + "clear\n" + start
    script += nequip(doctored(message_passing_layers="1"), keywords="verbose yes") + measurement("ours")
    outcome = run_lammps(script, tmp_path, ranks=2)
    assert outcome.status == 0, outcome.text
    assert_same(read_measurement(tmp_path, "ours"), read_measurement(tmp_path, "native"))
    assert "evaluations: mean and maximum" in outcome.text and "for layer" not in outcome.text


def sent(text: str) -> dict[str, float]:
    """Mean MB that a process sends for each layer in a step, from what the keyword verbose prints."""
    printed = text.split("evaluations: mean and maximum")[-1].splitlines()
    return {line[2:36].strip(): float(line[36:].split()[0]) for line in printed if line.endswith("MB sent")}


@pytest.mark.parametrize("keywords", ["", "neighbors engine"])
def test_traffic(keywords, artifacts, force_styles, tmp_path):
    """Each layer but the first sends features and gets gradients, as wide as the metadata say; ghosts that no neighbour list holds
    are left out."""
    from nequip_md.artifact import read_metadata

    style, path = force_styles["nequip"], artifacts("nequip")
    script = ""
    for lines in ("", "comm_modify cutoff 9.0\n"):
        script += style.start(tmp_path, "on", "clear") + "replicate 2 2 2\n" + lines
        script += nequip(path, "Al Cu", f"verbose yes {keywords}") + "run 0\n"
    outcome = run_lammps(script, tmp_path, ranks=2)
    assert outcome.status == 0, outcome.text
    usual, wide = map(sent, outcome.text.split("evaluations: mean and maximum")[1:])
    widths = [int(w) for w in read_metadata(path)["feature_widths"].split()]
    assert len(widths) == 2 and list(usual) == [
        *(f"features for layer {layer}" for layer in (2, 3)),
        *(f"gradients for layer {layer}" for layer in (3, 2)),
    ]
    for layer, width in zip((2, 3), widths):
        features, gradients = usual[f"features for layer {layer}"], usual[f"gradients for layer {layer}"]
        assert features == pytest.approx(gradients, rel=1e-5)
        atoms = features * 1e6 / (8 * width)
        assert 0 < atoms and abs(atoms - round(2 * atoms) / 2) < 0.01, (
            "half a number of atoms, as a mean over two ranks"
        )
    if keywords:
        assert wide["features for layer 2"] > usual["features for layer 2"], "the engine's search takes all ghosts"
    else:
        assert wide == usual
