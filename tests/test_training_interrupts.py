"""Training that is asked to end: exit status, message, and what can be resumed, with real signals."""

import csv
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys

import lightning as L
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nequip_md.interrupt import Interrupted, interruptible, uninterrupted
from nequip_md.training import train
from nequip_md.training.states import read_state
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
    batch, epochs = re.search(r"after (?:batch (\d+) of )?epoch (\d+) is saved in .*last\.ckpt", error).groups()
    state, epochs = torch.load(output / "last.ckpt", weights_only=True), int(epochs)
    assert state["epoch"] == epochs - 1 and state["nequip_md"]["batches"] == int(batch or 0)
    assert not (output / "report.json").exists()

    assert run(folder, output, "--resume", stop={"max_epochs": epochs + 2}) == 0
    assert run(folder, tmp_path / "whole", stop={"max_epochs": epochs + 2}) == 0
    assert_same_end(output, tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "line", "expected", "flags"),
    [
        (signal.SIGTERM, "training data", "no state was saved", []),
        (signal.SIGINT, "training data", "no state was saved", []),
        (signal.SIGTERM, "epoch    1", "the state after epoch 1 is saved", ["--resume"]),
        (signal.SIGINT, "epoch    3", "the state after epoch 3 is saved", ["--resume"]),
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


class SignalInStep:
    """Sends signals to this process within some optimizer steps, which are numbered from 1 over all runs."""

    def __init__(self, number, *steps):
        self.number, self.steps, self.count = number, steps, 0

    def _count(self, *_):
        self.count += 1
        if self.count in self.steps:
            os.kill(os.getpid(), self.number)

    def __enter__(self):
        self.hook = register_optimizer_step_post_hook(self._count)
        return self

    def __exit__(self, *_):
        self.hook.remove()


class SignalIn(L.Callback):
    """Sends a signal to this process in a hook of Lightning's trainer."""

    def __init__(self, hook, number, epoch):
        self.epoch, self.number = epoch, number
        setattr(self, hook, self._send)

    def _send(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.number)


def same_table(one, other):
    """Whether the last rows of the tables of two runs are the same but for the time."""
    rows = []
    for output in (one, other):
        path = max(output.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
        with open(path) as file:
            row = list(csv.DictReader(file))[-1]
        rows.append({k: v for k, v in row.items() if k not in ("seconds", "step")})
    return rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The end of uninterrupted runs of three epochs of five batches, by options."""
    ends = {}

    def end(**sections):
        key = str(sections)
        if key not in ends:
            ends[key] = tmp_path_factory.mktemp("whole") / "run"
            assert run(folder, ends[key], **sections) == 0
        return ends[key]

    return end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps", [(7,), (1,), (5,), (6, 8, 11)])
def test_a_run_continues_within_an_epoch(folder, tmp_path, capsys, whole, number, steps):
    """After the first, a middle and the last batch of an epoch, and when it is interrupted again and again."""
    output, flags = tmp_path / "run", []
    with SignalInStep(number, *steps):
        for step in steps:
            assert run(folder, output, *flags) == 128 + number
            epoch, batch = divmod(step - 1, 5)
            assert f"the state after batch {batch + 1} of epoch {epoch + 1} is saved in" in capsys.readouterr().err
            assert read_state(output / "last.ckpt")["global_step"] == step
            flags = ["--resume"]
        assert run(folder, output, "--resume") == 0
    assert_same_end(output, whole())
    assert same_table(output, whole())


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"workers": 2}},
        {"data": {"batch_size": 20, "max_atoms": 35}},
        {"data": {"batch_size": 20}},
        {"optimizer": {"ema_decay": None}, "stop": {"patience": 2, "max_epochs": 3}},
    ],
    ids=["workers", "batches of many sizes", "one batch", "no average"],
)
def test_a_run_continues_within_an_epoch_with_other_options(folder, tmp_path, whole, sections):
    output, steps = tmp_path / "run", 2 if sections.get("data") == {"batch_size": 20} else 8
    with SignalInStep(signal.SIGTERM, steps):
        assert run(folder, output, **sections) == 143
    assert read_state(output / "last.ckpt")["nequip_md"]["batches"] > 0
    assert run(folder, output, "--resume", **sections) == 0
    assert_same_end(output, whole(**sections))


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end", "on_train_epoch_start", "on_train_end"])
def test_a_run_continues_wherever_it_ended(folder, tmp_path, monkeypatch, whole, hook):
    output, make = tmp_path / "run", L.Trainer
    epoch = 3 if hook == "on_train_end" else 1

    def trainer(*arguments, callbacks, **options):
        return make(*arguments, callbacks=[*callbacks, SignalIn(hook, signal.SIGINT, epoch)], **options)

    with monkeypatch.context() as patch:
        patch.setattr(L, "Trainer", trainer)
        assert run(folder, output) == 130
    assert run(folder, output, "--resume") == 0
    assert_same_end(output, whole())
    assert same_table(output, whole())


def test_a_diverged_state_is_not_saved_within_an_epoch(folder, tmp_path, capsys):
    """The state of the epoch before is worth more."""
    output = tmp_path / "run"
    assert run(folder, output, stop={"max_epochs": 1}) == 0
    before = (output / "last.ckpt").read_bytes()

    def spoil(optimizer, *_):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    hook = register_optimizer_step_post_hook(spoil)
    try:
        with SignalInStep(signal.SIGTERM, 2):
            assert run(folder, output, "--resume") == 143
    finally:
        hook.remove()
    assert "the state after epoch 1 is saved" in capsys.readouterr().err
    assert (output / "last.ckpt").read_bytes() == before


def test_held_signals_come_at_the_end():
    """Once, whatever their number, and after the last of several holds."""
    done = []
    with pytest.raises(Interrupted) as stop, interruptible():
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("never")
    with pytest.raises(Interrupted), interruptible(), uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("an error that the signal may have caused")
    assert done == ["inner", "outer"] and stop.value.signal == signal.SIGTERM
    with pytest.raises(Interrupted), interruptible():  # nothing is left of the holds
        os.kill(os.getpid(), signal.SIGINT)


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
    assert {p.name for p in multiprocessing.active_children()} <= before  # the program could not end
    error = capsys.readouterr().err
    assert error.startswith("error: a process that reads data has died (DataLoader worker")
    assert "lower data.workers" in error and "--resume" in error and "Traceback" not in error
