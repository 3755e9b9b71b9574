"""Bad input: the message names the error and the remedy, and all ranks end."""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.lammps_run import Outcome, run_lammps, run_program
from support.lammps_systems import NATIVE, SYSTEMS, nequip

SYSTEM = SYSTEMS["orthogonal"]
LIMIT = 60
"""Seconds; a rank that is left waiting in a collective call shows up as a timeout."""

# name: (input lines after the box is made, words of the message).
# {lj} is a good artifact, {folder} holds damaged files.
NEGATIVE_CONTROLS = {
    "missing file": (
        "pair_style nequip\npair_coeff * * {folder}/nowhere.pt2 Ar Ne",
        "cannot open model file|nowhere.pt2|check the path",
    ),
    "a folder": ("pair_style nequip\npair_coeff * * {folder} Ar Ne", "is a directory"),
    "not a .pt2": (
        "pair_style nequip\npair_coeff * * {folder}/text.pt2 Ar Ne",
        "text.pt2|is not a .pt2 artifact|nequip-md-export",
    ),
    "another zip": (
        "pair_style nequip\npair_coeff * * {folder}/other.pt2 Ar Ne",
        "other.pt2|is not a .pt2 artifact|export",
    ),
    "truncated": (
        "pair_style nequip\npair_coeff * * {folder}/truncated.pt2 Ar Ne",
        "truncated.pt2|damaged|export the model again",
    ),
    "other format version": (
        "pair_style nequip\npair_coeff * * {format} Ar Ne",
        "format version 1|reads version 2|nequip-md-export MODEL -o OUT.pt2",
    ),
    "other torch": ("pair_style nequip\npair_coeff * * {torch} Ar Ne", "torch 1.13.0|export the model again"),
    "no metadata": (
        "pair_style nequip\npair_coeff * * {bare} Ar Ne",
        "no metadata key 'format_version'|nequip-md-export",
    ),
    "bad metadata": (
        "pair_style nequip\npair_coeff * * {cutoffs} Ar Ne",
        "'pair_cutoffs'|6.0 5.5|export the model again",
    ),
    "CUDA artifact": (
        "pair_style nequip\npair_coeff * * {cuda} Ar Ne",
        "exported for device cuda|no such device|--device cpu",
    ),
    "CPU artifact, device cuda": (
        "pair_style nequip device cuda\npair_coeff * * {lj} Ar Ne",
        "exported for device cpu|--device cuda",
    ),
    "wrong element": ("pair_style nequip\npair_coeff * * {lj} Ar Xe", "'Xe'|it has: Ar Ne"),
    "too few elements": ("pair_style nequip\npair_coeff * * {lj} Ar", "names 1 model types|each of the 2 atom types"),
    "too many elements": (
        "pair_style nequip\npair_coeff * * {lj} Ar Ne Ar",
        "names 3 model types|each of the 2 atom types",
    ),
    "no elements": ("pair_style nequip\npair_coeff * *", "pair_coeff * * model.pt2 name1 name2"),
    "no pair_coeff": ("pair_style nequip", "coeffs are not set"),
    "second pair_coeff for other types": (
        "pair_style nequip\npair_coeff * * {lj} Ar Ne\npair_coeff 1 1 {lj} Ar",
        "* *",
    ),
    "NULL without hybrid": ("pair_style nequip\npair_coeff * * {lj} Ar NULL", "coeffs are not set"),
    "pair_style again drops the model": (
        "pair_style nequip\npair_coeff * * {lj} Ar Ne\npair_style nequip",
        "coeffs are not set",
    ),
    "unknown keyword": (
        "pair_style nequip thread 2",
        "'thread'|device cpu|cuda, guard yes|no, isolated yes|no, max_edges N, neighbors engine|lammps, replay yes|no, threads N, verbose yes|no",
    ),
    "keyword without value": ("pair_style nequip threads", "'threads' has no value"),
    "bad neighbors": ("pair_style nequip neighbors gpu", "neighbors is 'gpu'|engine or lammps"),
    "bad replay": ("pair_style nequip replay maybe", "replay is 'maybe'|yes or no"),
    "own search with exclusions": (
        "pair_style nequip neighbors engine\npair_coeff * * {lj} Ar Ne\nneigh_modify exclude type 1 1",
        "neighbors engine|neigh_modify exclude|neighbors lammps",
    ),
    "own search in hybrid": (
        "pair_style hybrid nequip neighbors engine\npair_coeff * * nequip {lj} Ar Ne",
        "neighbors engine|pair style hybrid|neighbors lammps",
    ),
    "bad device": ("pair_style nequip device gpu", "'gpu'|cpu or cuda"),
    "zero edges": ("pair_style nequip max_edges 0", "max_edges is 0|1 or more"),
    "zero threads": ("pair_style nequip threads 0", "threads is 0|from 1 to 1024"),
    "thousands of threads": ("pair_style nequip threads 20000", "threads is 20000|from 1 to 1024"),
    "bad isolated": ("pair_style nequip isolated none", "isolated is 'none'|yes or no"),
    "threads no number": ("pair_style nequip threads two", "two"),
    "units lj": ("pair_style nequip\npair_coeff * * {lj} Ar Ne", "cannot use units lj|units metal or real"),
    "units si": ("pair_style nequip\npair_coeff * * {lj} Ar Ne", "cannot use units si|units metal or real"),
    "units electron": ("pair_style nequip\npair_coeff * * {lj} Ar Ne", "cannot use units electron|units metal or real"),
    "names in small letters": ("pair_style nequip\npair_coeff * * {lj} ar ne", "'ar'|it has: Ar Ne"),
    "file after the names": (
        "pair_style nequip\npair_coeff * * Ar Ne {lj}",
        "cannot open model file 'Ar'|check the path",
    ),
    "an empty file": ("pair_style nequip\npair_coeff * * {folder}/empty.pt2 Ar Ne", "empty.pt2|is not a .pt2 artifact"),
    "a checkpoint": (
        "pair_style nequip\npair_coeff * * {folder}/model.nqmd Ar Ne",
        "model.nqmd|is not a .pt2 artifact|nequip-md-export",
    ),
    "one pair of types": ("pair_style nequip\npair_coeff 1 2 {lj} Ar Ne", "must start with * * for pair style nequip"),
    "negative edges": ("pair_style nequip max_edges -5", "max_edges is -5|1 or more"),
    "edges no number": ("pair_style nequip max_edges many", "many"),
    "pieces of a message-passing model": (
        "pair_style nequip max_edges 100\npair_coeff * * {messages} Ar Ne",
        "max_edges is 100|message passing",
    ),
    "impossible cutoff": ("pair_style nequip\npair_coeff * * {negative} Ar Ne", "'cutoff'|-1|export the model again"),
    "another processor": (
        "pair_style nequip\npair_coeff * * {avx} Ar Ne",
        "processor with avx9000|export the model again here",
    ),
    "unknown precision": ("pair_style nequip\npair_coeff * * {fp8} Ar Ne", "'precision'|fp8|export the model again"),
    "lengths in bohr": ("pair_style nequip\npair_coeff * * {bohr} Ar Ne", "'length_unit'|bohr"),
}
TWO_RANKS_ONLY = {
    "message passing without an exchange": (
        "pair_style nequip\npair_coeff * * {messages} Ar Ne",
        "exported for one process|write it again with: nequip-md-export",
    ),
}
UNITS = {"units lj": "lj", "units si": "si", "units electron": "electron"}


@pytest.fixture(scope="module")
def files(lj_artifact, doctored, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "text.pt2").write_text("these are not the weights you are looking for\n")
    with zipfile.ZipFile(folder / "other.pt2", "w") as archive:
        archive.writestr("readme.txt", "nothing compiled")
    (folder / "empty.pt2").touch()
    (folder / "model.nqmd").write_bytes(b"\x40" + bytes(7) + b'{"__metadata__":{}}')
    (folder / "truncated.pt2").write_bytes(lj_artifact.read_bytes()[:20_000])
    return {
        "folder": folder,
        "lj": lj_artifact,
        "format": doctored(format_version="1"),
        "torch": doctored(torch_version="1.13.0"),
        "bare": doctored(format_version=None),
        "cutoffs": doctored(pair_cutoffs="6.0 5.5"),
        "cuda": doctored(device="cuda", AOTI_DEVICE_KEY="cuda"),
        "messages": doctored(message_passing_layers="3"),
        "negative": doctored(cutoff="-1"),
        "fp8": doctored(precision="fp8"),
        "bohr": doctored(length_unit="bohr"),
        "avx": doctored(cpu_instructions="sse2 avx9000" if platform.machine() == "x86_64" else "avx9000"),
    }


CASES = [(case, ranks) for case in NEGATIVE_CONTROLS for ranks in (1, 2)] + [(case, 2) for case in TWO_RANKS_ONLY]


@pytest.mark.parametrize("case, ranks", CASES)
def test_refused(case, ranks, files, tmp_path):
    lines, words = {**NEGATIVE_CONTROLS, **TWO_RANKS_ONLY}[case]
    start = SYSTEM.start(tmp_path, units=UNITS.get(case, "metal"))
    outcome = run_lammps(start + lines.format(**files) + "\nrun 0\n", tmp_path, ranks=ranks, limit=LIMIT)
    assert_refused(outcome, *words.split("|"))


def assert_refused(outcome: Outcome, *words: str):
    assert outcome.status != 0 and "ERROR" in outcome.text, outcome.text
    assert "Loop time" not in outcome.text, "the run went through"
    for word in words:
        assert word in outcome.text, outcome.text
    assert "frame #" not in outcome.text and "Exception raised" not in outcome.text, (
        "a stack trace of torch reached the user"
    )


BONDED = """
units metal
atom_style bond
region box block 0 20 0 20 0 20
create_box 2 box bond/types 1 extra/bond/per/atom 2 extra/special/per/atom 4
create_atoms 1 single 5 5 5
create_atoms 1 single 8.6 5 5
mass * 40
bond_style zero
bond_coeff * 3.6
create_bonds single/bond 1 1 2
special_bonds lj {factors}
pair_style nequip
pair_coeff * * {path} Ar Ne
run 0
print "energy $(pe:%.12f)"
"""


@pytest.mark.parametrize(
    "factors, message",
    [
        ("0 1 1", "needs bonded atoms as full neighbors"),
        ("0 0 0", "needs bonded atoms as full neighbors"),
        ("0.5 1 1", "needs bonded atoms as full neighbors"),
        ("1 0.5 0", None),  # nothing here is bonded over one or two atoms
        ("1 1 1", None),
    ],
)
def test_special_bonds(factors, message, lj_artifact, lj_model, tmp_path):
    """A model has no bonds: excluded or scaled neighbours are refused, and bonded atoms count as full neighbours."""
    outcome = run_lammps(BONDED.format(factors=factors, path=lj_artifact), tmp_path, ranks=2, limit=LIMIT)
    if message:
        return assert_refused(outcome, message, "special_bonds lj 1 1 1")
    assert outcome.status == 0, outcome.text
    energy = float(outcome.text.split("energy ")[-1].split()[0])
    six = (3.4 / 3.6) ** 6
    assert abs(energy + 3.0 - (4 * 0.0104 * (six**2 - six) - float(lj_model.at_cutoff[0, 0]))) < 1e-9


def test_without_atom_ids(lj_artifact, tmp_path):
    start = SYSTEM.start(tmp_path).replace("newton", "atom_modify id no\nnewton").replace("read_data", "#read_data")
    box = "region box block 0 20 0 20 0 20\ncreate_box 2 box\ncreate_atoms 1 single 1 1 1\nmass * 40\n"
    assert_refused(
        run_lammps(start + box + nequip(lj_artifact) + "run 0\n", tmp_path, ranks=2, limit=LIMIT), "requires atom IDs"
    )


def test_other_lammps_release(plugin_folder, lj_artifact, tmp_path):
    """A plugin built for another release loads, and refuses when the pair style is asked for."""
    from nequip_md.lammps.installation import Installation

    here = Installation.find()
    source = here.source / "lammps"
    subprocess.run(
        [
            "g++",
            "-shared",
            "-fPIC",
            "-std=c++17",
            "-DLAMMPS_SMALLBIG",
            "-DNEQUIP_MD_LAMMPS_RELEASE=20230802",
            *(
                f"-I{folder}"
                for folder in (here.lammps / "include" / "lammps", here.mpi_include, plugin_folder / "include")
            ),
            *source.glob("*.cpp"),
            "-o",
            tmp_path / "old.so",
            plugin_folder / "libnequip_md_engine.so",
            f"-Wl,-rpath,{plugin_folder}",
        ],
        check=True,
    )
    script = (
        "plugin unload pair nequip\nplugin load ./old.so\n"
        + SYSTEM.start(tmp_path)
        + NATIVE
        + "run 0 post no\n"
        + nequip(lj_artifact)
    )
    outcome = run_lammps(script, tmp_path, ranks=2, limit=LIMIT)
    assert outcome.status != 0
    for word in ("built for LAMMPS release 20230802", "this is 2025", "nequip-md-lammps build"):
        assert word in outcome.text, outcome.text


NAN_POSITION = """
import sys
import nequip_md.lammps
lmp = nequip_md.lammps.start(args=["-log", "none"])
lmp.commands_string(open("in.nan").read())
tags = lmp.numpy.extract_atom("id")
for k in range(lmp.extract_global("nlocal")):
    if tags[k] == 17:
        lmp.numpy.extract_atom("x")[k, 1] = float("nan")
lmp.command("neigh_modify every 100 delay 100")
lmp.command("run 1 pre no post no")
print("SURVIVED", flush=True)
"""


@pytest.mark.parametrize("ranks, potential", [(1, "lj"), (2, "lj"), (2, "eam_messages"), (4, "eam_messages")])
def test_nan_position(ranks, potential, artifacts, tmp_path):
    """Set behind LAMMPS' back, as LAMMPS itself stops when it sorts such an atom into a cell. With message passing, the other
    processes wait for features of the one that fails, and end nevertheless."""
    (tmp_path / "in.nan").write_text(SYSTEM.start(tmp_path) + nequip(artifacts(potential)) + "run 0 post no\n")
    (tmp_path / "nan.py").write_text(NAN_POSITION)
    outcome = run_program([sys.executable, "-m", "mpi4py", "nan.py"], tmp_path, ranks=ranks, limit=LIMIT)
    assert outcome.status != 0
    assert "position of an atom is not finite" in outcome.text and "(atom ID 17)" in outcome.text, outcome.text
    assert outcome.text.count("SURVIVED") == 0, outcome.text


def test_nan_force(lj_artifact, tmp_path):
    """Two atoms on one point: infinite energy is refused, with the atom's ID."""
    script = (
        SYSTEM.start(tmp_path)
        + "create_atoms 1 single 4.0 4.0 4.0 units box\ncreate_atoms 1 single 4.0 4.0 4.0 units box\n"
        + nequip(lj_artifact)
        + "run 0\n"
    )
    outcome = run_lammps(script, tmp_path, ranks=2, limit=LIMIT)
    assert_refused(outcome, "is not finite", "atom ID 14", "on top of each other")
