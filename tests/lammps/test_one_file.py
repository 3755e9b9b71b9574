"""All MPI processes must load the same file; different files under one name are refused."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from support.lammps_run import SCRIPTS, Outcome
from support.lammps_systems import SYSTEMS, nequip


def run_in_two_folders(tmp_path, script: str) -> Outcome:
    """The same input on two ranks, each in a folder of its own."""
    command = [SCRIPTS / "mpiexec"]
    for rank in range(2):
        (tmp_path / f"r{rank}" / "in.test").write_text(script)
        command += [":"] * rank + ["-n", "1", "-wdir", tmp_path / f"r{rank}", SCRIPTS / "lmp", "-in", "in.test"]
    done = subprocess.run([*map(str, command)], timeout=60, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Outcome(done.returncode, done.stdout, tmp_path)


@pytest.mark.parametrize("given_by", ["pair_coeff", "restart"])
@pytest.mark.parametrize("same", [True, False])
def test_one_file_on_all_ranks(same, given_by, lj_artifact, doctored, tmp_path):
    """Whether pair_coeff names the file or a restart file does; same bytes in two places are one file."""
    system = SYSTEMS["orthogonal"].start(tmp_path)
    other = lj_artifact if same else doctored(checkpoint_sha256="another")
    for rank, path in enumerate((lj_artifact, other)):
        (tmp_path / f"r{rank}").mkdir()
        shutil.copy(path, tmp_path / f"r{rank}" / "model.pt2")
    if given_by == "restart":
        write = system + nequip("model.pt2") + "run 0\nwrite_restart file\n"
        shutil.copy(lj_artifact, tmp_path / "r1" / "model.pt2")
        assert run_in_two_folders(tmp_path, write).status == 0
        shutil.copy(other, tmp_path / "r1" / "model.pt2")
        outcome = run_in_two_folders(tmp_path, "read_restart file\nrun 0\n")
    else:
        outcome = run_in_two_folders(tmp_path, system + nequip("model.pt2") + "run 0\n")
    if same:
        assert outcome.status == 0 and "Loop time" in outcome.text, outcome.text
        return
    assert outcome.status != 0 and "Loop time" not in outcome.text
    for word in (
        "'model.pt2' is not the same on all MPI processes",
        "process 0 on ",
        "and process 1 on ",
        "give all of them the same file",
    ):
        assert word in outcome.text, outcome.text


def test_missing_on_one_rank(lj_artifact, tmp_path):
    for rank in range(2):
        (tmp_path / f"r{rank}").mkdir()
    shutil.copy(lj_artifact, tmp_path / "r0" / "model.pt2")
    outcome = run_in_two_folders(tmp_path, SYSTEMS["orthogonal"].start(tmp_path) + nequip("model.pt2") + "run 0\n")
    assert outcome.status != 0 and "cannot open model file 'model.pt2'" in outcome.text, outcome.text
