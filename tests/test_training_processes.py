"""Training on several processes (gloo, on processors): the same steps as one process takes on the joined batches."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones

from nequip_md import checkpoint
from nequip_md.training.data.batches import Batches
from nequip_md.training.parallel import Processes
from nequip_md.training.states import read_state
from support.training_processes import train_on
from support.training_runs import assert_same_end, crystals, run, write_config, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def command_of(folder, output, processes, *flags, **sections):
    """``nequip-md-train`` under ``torchrun``, and its environment."""
    path = write_config(folder, output, **sections)
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [
        *launcher,
        "--no-python",
        Path(sys.executable).with_name("nequip-md-train"),
        path,
        "--output",
        output,
        *flags,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "XDG_CACHE_HOME": str(output.parent)}
    return [*map(str, command)], environment


def under_torchrun(folder, output, processes, *flags, **sections):
    """The exit status of :func:`command_of` and what it printed."""
    command, environment = command_of(folder, output, processes, *flags, **sections)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def assert_resumes(folder, tmp_path, processes, epochs, options):
    """A run that is resumed for its last epoch ends where an uninterrupted one does."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output, end, flags in ((whole, epochs, ()), (parts, epochs - 1, ()), (parts, epochs, ("--resume",))):
        path = write_config(folder, output, stop={"max_epochs": end}, **options)
        status, text = train_on(processes, [path, "--output", output, *flags], tmp_path)
        assert status == [0] * processes, text
    assert_same_end(whole, parts)


def weights(output):
    return checkpoint.load(output / "best.nqmd").state_dict()


def test_two_processes_take_the_steps_of_one(folder, tmp_path):
    """Two processes with half of a batch each, and frames with different labels, end where one with whole batches ends."""
    frames = crystals(16, 7)
    for atoms in frames[::3]:  # without stress, and so uneven counts of labels
        del atoms.calc.results["stress"]
    ase.io.write(folder / "mixed.extxyz", frames)
    data = {"train": "mixed.extxyz", "validation_split": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(folder, one, data={**data, "batch_size": 4}, stop={"max_epochs": 2}) == 0
    # in compiled steps, which the first process compiles for both
    options = {"data": {**data, "batch_size": 2}, "stop": {"max_epochs": 2}, "compile": "yes"}
    status, text = under_torchrun(folder, two, 2, **options)
    assert status == 0 and "without the compiled step" not in text, text
    assert len([*(tmp_path / "nequip-md" / "training").glob("*.pt2")]) == 1
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-10, atol=1e-12)
    # one log, and the metrics of all frames
    assert text.count("epoch    2") == 1
    table = [(line.split(",")) for line in (two / "logs/version_0/metrics.csv").read_text().splitlines()]
    other = [(line.split(",")) for line in (one / "logs/version_0/metrics.csv").read_text().splitlines()]
    column = {name: k for k, name in enumerate(table[0])}
    assert table[0] == other[0] and len(table) == 3
    for name, k in column.items():
        if name != "seconds":
            np.testing.assert_allclose(float(table[-1][k]), float(other[-1][k]), rtol=1e-9, err_msg=name)


def test_three_processes_with_uneven_data_resume_exactly(folder, tmp_path):
    """Twenty frames in batches of 3 for three processes: in the last step two of them have no frame."""
    options = {"data": {"batch_size": 3, "validation_split": 4, "test": None}}
    assert_resumes(folder, tmp_path, 3, 2, options)


def test_batches_by_size_train_and_resume(folder, tmp_path):
    """Batches whose number differs from epoch to epoch: two processes, whole and resumed."""
    frames = crystals(9, 3)
    frames += [atoms[:5] for atoms in crystals(9, 4)]
    for atoms in frames[9:]:
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.5, rc=1.8, ro=1.4, smooth=True)
        atoms.get_forces()
    ase.io.write(folder / "sizes.extxyz", frames)
    options = {
        "data": {"train": "sizes.extxyz", "batch_size": 18, "max_atoms": 30, "test": None},
        "loss": {"stress": 0.0},
    }
    assert_resumes(folder, tmp_path, 2, 3, options)


def test_two_processes_that_are_ended_continue_within_the_epoch(folder, tmp_path):
    """The launcher hands the signal on to both, which end after the same step."""
    options = {"data": {"train": ["train.extxyz"] * 12, "batch_size": 1, "test": None}, "stop": {"max_epochs": 2}}
    output = tmp_path / "run"
    command, environment = command_of(folder, output, 2, **options)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **streams, text=True, env=environment, cwd=folder) as process:
        assert any(line.startswith("epoch    1") for line in process.stdout)
        time.sleep(0.3)  # an epoch takes a second or more
        process.terminate()
        text, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "epoch    2" not in text
    state = read_state(output / "last.ckpt")
    assert 0 < state["nequip_md"]["batches"] < 142 and state["epoch"] == 1
    whole = tmp_path / "whole"
    for path, flags in ((output, ["--resume"]), (whole, [])):
        arguments = [write_config(folder, path, **options), "--output", path, *flags]
        status, text = train_on(2, arguments, tmp_path)
        assert status == [0, 0], text
    assert_same_end(output, whole)


def test_a_failure_of_one_ends_all(folder, tmp_path):
    status, text = under_torchrun(folder, tmp_path / "out", 2, data={"train": "absent.extxyz"})
    assert status != 0 and "absent.extxyz does not exist" in text


@pytest.mark.parametrize("limits", [(4,), (None, 40), (None, None, 300), (3, 60, 500)])
def test_batches_share_all_frames_among_processes(limits):
    rng = np.random.default_rng(0)
    atoms, edges = rng.integers(1, 30, 57), rng.integers(0, 250, 57)
    most = [np.inf if m is None else m for m in (*limits, None, None)[:3]]
    for processes in (1, 2, 3, 8):
        made = [Batches(atoms, edges, limits, seed=3, process=p, processes=processes) for p in range(processes)]
        for epoch in (0, 1):
            for batches in made:
                batches.set_epoch(epoch)
            chosen = [list(batches) for batches in made]
            assert len({len(c) for c in chosen}) == 1
            assert sorted(frame for c in chosen for batch in c for frame in batch) == list(range(57))
            for batch in (batch for c in chosen for batch in c):
                sizes = len(batch), atoms[batch].sum(), edges[batch].sum()
                assert all(s <= m for s, m in zip(sizes, most)) or len(batch) == 1
            if limits == (4,):
                assert all(len(batches) == len(c) for batches, c in zip(made, chosen))
        first = [list(b) for b in made]
        for batches in made:
            batches.set_epoch(0)
        assert [list(b) for b in made] != first
    # as they are, without a seed
    assert [f for b in Batches(atoms, edges, (4,)) for f in b] == list(range(57))


def one_frame_after_the_other(atoms, edges, limits, seed, epoch):
    """All batches of an epoch, as they are defined."""
    limits = [np.inf if m is None else m for m in (*limits, None, None)[:3]]
    batches, totals = [], None
    for frame in np.random.default_rng([seed, epoch]).permutation(len(atoms)).tolist():
        sizes = (1, atoms[frame], edges[frame])
        totals = sizes if totals is None else tuple(t + s for t, s in zip(totals, sizes))
        if not batches or any(t > m for t, m in zip(totals, limits)):
            batches.append([])
            totals = sizes
        batches[-1].append(frame)
    return batches


@pytest.mark.parametrize("limits", [(4,), (None, 40), (None, None, 300), (3, 60, 500), (None, 1, None), (1000,)])
@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_batches_are_those_of_a_loop_over_all_frames(limits, seed):
    rng = np.random.default_rng(seed)
    for epoch in range(5):
        count = int(rng.integers(1, 400))
        atoms, edges = rng.integers(0, 30, count), rng.integers(0, 250, count) * rng.integers(0, 2, count)
        expected = one_frame_after_the_other(atoms, edges, limits, seed, epoch)
        for processes in (1, 3):
            for process in range(processes):
                made = Batches(atoms, edges, limits, seed=seed, process=process, processes=processes)
                made.set_epoch(epoch)
                own = expected[process::processes]
                own += [[]] * (-(-len(expected) // processes) - len(own))
                assert list(made) == own
                made.leave_out(2, epoch)
                assert list(made) == own[2:]
                steps = [made.frames(k) for k in range(len(own) + 1)]
                together = [sum(expected[k * processes : (k + 1) * processes], []) for k in range(len(own) + 1)]
                assert steps == together


def test_batches_are_filled():
    """No batch and the next one's first frame would have fitted together."""
    rng = np.random.default_rng(1)
    edges = rng.integers(1, 100, 200)
    made = list(Batches([1] * 200, edges, (None, None, 400), seed=0))
    for batch, following in zip(made, made[1:]):
        assert edges[batch].sum() + edges[following[0]] > 400


def test_processes_come_from_the_launcher(monkeypatch):
    for name in [
        name for name in os.environ if name.startswith(("SLURM_", "MASTER_")) or name.endswith(("RANK", "SIZE"))
    ]:
        monkeypatch.delenv(name)
    assert Processes.of_this_run() == Processes(0, 1, 1)
    # the script of a batch job of several tasks
    for name, value in {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert Processes.of_this_run() == Processes(0, 1, 1)
    # a step of it
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    for name, value in {**step, "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "node[07-08]"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert Processes.of_this_run() == Processes(5, 8, 4)
    assert Processes.of_this_run().machines == 2
    assert os.environ["MASTER_ADDR"] == "node07" and os.environ["MASTER_PORT"] == "18456"
    assert os.environ["LOCAL_RANK"] == "1" and os.environ["GROUP_RANK"] == "1"
