"""Training that is asked to end: exit status, message, and what can be resumed, with real signals."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from nequip_md.interrupt import Interrupted
from nequip_md.training import train
from support.training_runs import assert_same_end, run, write_config, write_data

SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class SignalAt(logging.Handler):
    """Sends a signal to this process when the training run logs a line that begins as given."""

    def __init__(self, number, start):
        super().__init__()
        self.number, self.start, self.sent = number, start, False

    def emit(self, record):
        if record.getMessage().startswith(self.start) and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)

    def __enter__(self):
        logging.getLogger("nequip_md.training").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("nequip_md.training").removeHandler(self)


@pytest.mark.parametrize(
    ("number", "status", "name", "environment", "workers"),
    [
        (signal.SIGTERM, 143, "SIGTERM", SLURM, 0),
        (signal.SIGINT, 130, "Ctrl-C", {}, 0),
        (signal.SIGTERM, 143, "SIGTERM", SLURM, 2),
        (signal.SIGINT, 130, "Ctrl-C", {}, 2),
    ],
)
def test_a_run_that_is_ended_says_so_and_resumes_exactly(folder, tmp_path, number, status, name, environment, workers):
    output = tmp_path / "run"
    # another program's state, which Lightning would resume from on Slurm
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"")
    config = write_config(folder, output, stop={"max_epochs": 100000}, data={"workers": workers})
    process = subprocess.Popen(
        [sys.executable, "-m", "nequip_md.training.cli", config, "--output", output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
        start_new_session=True,
    )
    with process:
        assert any(line.startswith("epoch    3") for line in process.stdout), process.stderr.read()
        os.killpg(process.pid, number)  # as a terminal and Slurm do
        _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert error.count("\n") == 1 and f"ended by {name}" in error and "--resume" in error
    epochs = int(re.search(r"after epoch (\d+) is saved in .*last\.ckpt", error)[1])
    assert torch.load(output / "last.ckpt", weights_only=True)["epoch"] == epochs - 1
    assert not (output / "report.json").exists()

    assert run(folder, output, "--resume", stop={"max_epochs": epochs + 2}) == 0
    assert run(folder, tmp_path / "whole", stop={"max_epochs": epochs + 2}) == 0
    assert_same_end(output, tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "line", "expected", "flags"),
    [
        (signal.SIGTERM, "training data", "no epoch was complete", []),
        (signal.SIGINT, "training data", "no epoch was complete", []),
        (signal.SIGTERM, "epoch    1", "no epoch was complete", ["--overwrite"]),
        (signal.SIGTERM, "trained 3 epochs", "the state after epoch 3 is saved", ["--resume"]),
        (signal.SIGINT, "trained 3 epochs", "the state after epoch 3 is saved", ["--resume"]),
    ],
)
def test_the_status_is_right_at_every_stage(folder, tmp_path, capsys, number, line, expected, flags):
    output = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with SignalAt(number, line) as sender:
        assert run(folder, output) == 128 + number
    assert sender.sent and expected in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert not (output / "report.json").exists()
    assert run(folder, output, *flags) == 0
    assert (output / "report.json").exists()


def test_sigterm_is_no_success_for_callers_of_the_function_either(folder, tmp_path):
    config = write_config(folder, tmp_path / "run")
    logging.getLogger("nequip_md.training").setLevel(logging.INFO)
    with SignalAt(signal.SIGTERM, "epoch    2"), pytest.raises(Interrupted, match="the state after epoch") as stop:
        train(config, output=tmp_path / "run")
    assert stop.value.status == 143


def test_each_epoch_is_in_the_table_at_once(folder, tmp_path):
    rows = []

    class Look(SignalAt):
        def emit(self, record):
            if record.getMessage().startswith(self.start):
                rows.append((tmp_path / "run/logs/version_0/metrics.csv").read_text().count("\n"))

    with Look(None, "epoch    3"):
        assert run(folder, tmp_path / "run") == 0
    assert rows == [3]  # the heading and two epochs


def test_a_worker_that_dies_is_no_fault_of_the_program(folder, tmp_path, capsys):
    """The system kills processes when memory runs out."""

    before = {p.name for p in multiprocessing.active_children()}

    class KillWorker(SignalAt):
        def emit(self, record):
            if record.getMessage().startswith(self.start):
                # the process that runs the tests may have other children
                workers = [p for p in multiprocessing.active_children() if p.name not in before]
                os.kill(workers[0].pid, self.number)

    with KillWorker(signal.SIGKILL, "epoch    2"):
        assert run(folder, tmp_path / "run", data={"workers": 1}, stop={"max_epochs": 100}) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a process that reads data has died (DataLoader worker")
    assert "lower data.workers" in error and "--resume" in error and "Traceback" not in error
