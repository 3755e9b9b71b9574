"""Restart files name the potential: it is loaded without pair_coeff, and compared with one that pair_coeff loads instead."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, nequip

SETTINGS = "neighbor 0.5 bin\nneigh_modify every 2 delay 0 check yes\ntimestep 0.002\nfix move all nve\n"
START = SETTINGS + "velocity all create 40.0 4928 dist gaussian loop geom\n"


@pytest.mark.parametrize("ranks, newton", [(1, "on"), (2, "on"), (2, "off")])
def test_a_continued_run_is_the_uninterrupted_one(ranks, newton, lj_artifact, tmp_path):
    start = SYSTEMS["orthogonal"].start(tmp_path, newton)
    whole = start + nequip(lj_artifact) + START + "run 40\n" + measurement("whole")
    parts = (
        start
        + nequip(lj_artifact, keywords="threads 2 max_edges 5000")
        + START
        + "run 20\nwrite_restart half\n"
        + f"clear\nnewton {newton}\nread_restart half\n"
        + SETTINGS
        + "run 20\n"
        + measurement("parts")
    )
    outcome = run_lammps(whole + "clear\n" + parts, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    assert "another potential" not in outcome.text
    assert outcome.text.count("threads 2") == 2, "the keywords are part of the restart file"
    expected, result = (read_measurement(tmp_path, name) for name in ("whole", "parts"))
    assert np.abs(expected["forces"]).max() > 0.01
    for quantity, value in expected.items():
        np.testing.assert_allclose(
            result[quantity], value, rtol=1e-7, atol=1e-9 * np.abs(value).max(), err_msg=quantity
        )


def restart(tmp_path, path, names="Ar Ne") -> str:
    """Input lines that write a restart file with the artifact at ``path`` and read it again."""
    return (
        SYSTEMS["orthogonal"].start(tmp_path)
        + nequip(path, names)
        + "run 0\nwrite_restart file\nclear\nread_restart file\n"
    )


def test_hybrid_keeps_the_keywords(lj_artifact, tmp_path):
    """pair_style hybrid restores its styles with their keywords; pair_coeff is given again, as for all of its styles."""
    coefficients = f"pair_coeff * * nequip {lj_artifact} Ar NULL\npair_coeff * 2 lj/cut 0.006 3.0\n"
    direct = (
        SYSTEMS["triclinic"].start(tmp_path)
        + "pair_style hybrid/overlay nequip threads 2 lj/cut 6.0\n"
        + coefficients
        + measurement("direct")
    )
    again = "write_restart file\nclear\nread_restart file\n" + coefficients + measurement("again")
    outcome = run_lammps(direct + again, tmp_path)
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("threads 2\n") >= 2
    for quantity, value in read_measurement(tmp_path, "direct").items():
        np.testing.assert_allclose(read_measurement(tmp_path, "again")[quantity], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_that_has_moved(ranks, lj_artifact, tmp_path):
    """The restart file is read all the same, says what to do, and pair_coeff does it."""
    moved, now = tmp_path / "moved.pt2", tmp_path / "elsewhere.pt2"
    shutil.copy(lj_artifact, moved)
    shutil.copy(lj_artifact, now)
    write = SYSTEMS["orthogonal"].start(tmp_path) + nequip(moved) + "run 0\nwrite_restart file\n"
    assert run_lammps(write, tmp_path, ranks=ranks).status == 0
    moved.unlink()
    again = run_lammps(f"read_restart file\npair_coeff * * {now} Ar Ne\nrun 0\n", tmp_path, ranks=ranks)
    assert again.status == 0, again.text
    assert "cannot open model file" in again.text and "pair_coeff * * MODEL.pt2 Ar Ne" in again.text
    assert "another potential" not in again.text
    without = run_lammps("read_restart file\nrun 0\n", tmp_path, ranks=ranks)
    assert without.status != 0 and "coeffs are not set" in without.text


def test_another_potential_is_named(lj_artifact, doctored, tmp_path):
    """Continuing with other weights, another precision or other names is possible and never silent."""
    before, after = doctored(checkpoint_sha256="aaa"), doctored(checkpoint_sha256="bbb", precision="fp32")
    script = restart(tmp_path, before) + f"pair_coeff * * {after} Ne Ar\nrun 0\n"
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    # read_restart has loaded the file's own model before the first pair_coeff
    assert "SHA-256 was 'aaa' and is 'bbb'" in outcome.text
    assert "precision was 'fp64' and is 'fp32'" in outcome.text
    assert "name of atom type 1 was 'Ar' and is 'Ne'" in outcome.text


def test_a_file_that_was_overwritten(doctored, tmp_path):
    """The same path, other weights."""
    path = tmp_path / "model.pt2"
    shutil.copy(doctored(checkpoint_sha256="aaa"), path)
    assert run_lammps(restart(tmp_path, path), tmp_path).status == 0
    shutil.copy(doctored(checkpoint_sha256="bbb"), path)
    outcome = run_lammps("read_restart file\nrun 0\n", tmp_path)
    assert outcome.status == 0, outcome.text
    assert "SHA-256 was 'aaa' and is 'bbb'" in outcome.text


def block(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


SETTINGS_BLOCK = block(b"cpu", b"no", b"7", b"123", b"lammps", b"yes", b"no")
# what becomes of the settings in the file
DAMAGES = {
    "length": SETTINGS_BLOCK.replace(block(b"lammps")[:4], (1 << 30).to_bytes(4, "little")),
    "negative length": SETTINGS_BLOCK.replace(block(b"lammps")[:4], (-6).to_bytes(4, "little", signed=True)),
    "number": SETTINGS_BLOCK.replace(b"123", b"1x3"),
    "number of threads": block(b"cpu", b"no", b"2147483648", b"123", b"lammps", b"yes", b"no"),
    "device": SETTINGS_BLOCK.replace(b"cpu", b"cqu"),
    "yes or no": SETTINGS_BLOCK.replace(b"yes", b"yas"),
}


@pytest.fixture(scope="module")
def intact(lj_artifact, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("intact")
    keywords = "device cpu isolated no threads 7 max_edges 123 neighbors lammps replay yes verbose no"
    script = (
        SYSTEMS["orthogonal"].start(folder) + nequip(lj_artifact, keywords=keywords) + "run 0\nwrite_restart file\n"
    )
    assert run_lammps(script, folder).status == 0
    content = (folder / "file").read_bytes()
    assert content.count(SETTINGS_BLOCK) == 1
    return content


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_settings(damage, intact, tmp_path):
    """One sentence that says what is damaged, on all ranks."""
    (tmp_path / "file").write_bytes(intact.replace(SETTINGS_BLOCK, DAMAGES[damage]))
    outcome = run_lammps("read_restart file\nrun 0\n", tmp_path, ranks=2, limit=60)
    assert outcome.status != 0
    assert "ERROR: The settings of pair style nequip in the restart file are damaged" in outcome.text, outcome.text
