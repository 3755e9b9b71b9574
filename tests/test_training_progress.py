"""What a run tells while it goes: the progress bar of a terminal, and the loggers that a training file names."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from nequip_md.errors import NequIPMDError
from nequip_md.training import loggers
from nequip_md.training.config import StopConfig
from nequip_md.training.progress import TrainingBar, seconds_left
from nequip_md.training.steps.schedule import Clock
from support.training_runs import run, write_config, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("limits", "epochs", "fraction", "in_epoch", "epoch_seconds", "elapsed", "expected"),
    [
        ({"max_epochs": 10}, 4, 0.5, 3.0, 8.0, 32.0, 44.0),
        ({"max_epochs": 10}, 0, 0.25, 3.0, 0.0, 0.0, 117.0),  # nothing is known but this epoch
        ({"max_epochs": 10, "max_time": 40}, 4, 0.5, 3.0, 8.0, 32.0, 5.0),
        ({"max_epochs": 10, "max_time": 33}, 4, 0.5, 3.0, 8.0, 32.0, 0.0),
        ({"max_epochs": 10}, 9, 1.0, 8.0, 8.0, 72.0, 0.0),
    ],
)
def test_the_time_that_is_left(limits, epochs, fraction, in_epoch, epoch_seconds, elapsed, expected):
    clock = Clock(StopConfig(**limits))
    clock.epoch_seconds, clock.elapsed = epoch_seconds, elapsed
    assert seconds_left(clock, epochs, fraction, in_epoch) == pytest.approx(expected)


def test_the_bar_counts_atoms(monkeypatch):
    bar, now = TrainingBar(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_epoch_start", lambda *_: None)
    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end", lambda *_: None)
    clock = Clock(StopConfig(max_epochs=2))
    data = SimpleNamespace(train=range(4), config=SimpleNamespace(passes_per_epoch=2))
    trainer, module = SimpleNamespace(datamodule=data, world_size=1, current_epoch=0), SimpleNamespace(clock=clock)
    bar.on_train_epoch_start(trainer, module)
    for k, atoms in enumerate((30, 50)):
        now[0] += 2
        bar.on_train_batch_end(
            trainer, module, None, SimpleNamespace(graph=SimpleNamespace(num_nodes=atoms, num_graphs=2)), k
        )
    assert bar.atoms_per_second == 20.0 and bar.left == pytest.approx(12.0)


def test_a_terminal_shows_the_bar_and_whole_lines(folder, tmp_path):
    path = write_config(folder, tmp_path / "run", stop={"max_epochs": 3}, loggers=["csv"])
    command = [sys.executable, "-m", "nequip_md", "train", str(path), "-o", str(tmp_path / "run")]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "180", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"[\d,]+ atoms/s +\d:\d\d:\d\d left", text)
    lines = re.split(r"[\r\n]+", text)
    epochs = [line for line in lines if "loss: train" in line]
    assert len(epochs) == 3 and all(re.match(r"epoch +\d  loss: train .* s *$", line) for line in epochs)


def test_a_file_gets_no_bar(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "run", stop={"max_epochs": 1}) == 0
    text = capsys.readouterr().out
    assert "loss: train" in text and "atoms/s" not in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_logger_that_is_not_installed_is_named(name, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda module: None)
    assert run(folder, tmp_path / "run", loggers=["csv", name]) == 1
    assert f"loggers has {name}, but the package {name} is not installed: pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_logger_that_is_not_known_is_refused(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "run", loggers=["neptune"]) == 1
    error = capsys.readouterr().err
    assert "loggers.0" in error and "'csv', 'tensorboard', 'wandb' or 'mlflow'" in error


def test_the_table_is_always_written(folder, tmp_path):
    assert run(folder, tmp_path / "run", stop={"max_epochs": 1}, loggers=["tensorboard"]) == 0
    (version,) = (tmp_path / "run" / "logs").iterdir()
    assert (version / "metrics.csv").exists() and list(version.glob("events.out.tfevents*"))
    assert run(folder, tmp_path / "other", stop={"max_epochs": 1}, loggers=[]) == 0
    (version,) = (tmp_path / "other" / "logs").iterdir()
    assert (version / "metrics.csv").exists() and not list(version.glob("events.out.tfevents*"))


def test_a_service_that_refuses_is_no_fault_of_the_program(tmp_path, monkeypatch):
    def refuse(output):
        raise ConnectionError("no route")

    monkeypatch.setitem(loggers._SERVICES, "mlflow", (refuse, "check MLFLOW_TRACKING_URI"))
    with pytest.raises(NequIPMDError, match=r"mlflow cannot start a run \(ConnectionError: no route\); check MLFLOW"):
        loggers.make_loggers(["mlflow"], tmp_path)


def table_of(output):
    (path,) = (output / "logs").glob("version_*/metrics.csv")
    return np.genfromtxt(path, delimiter=",", names=True, deletechars="")


def test_mlflow_has_the_numbers_of_the_table(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(folder, tmp_path / "run", stop={"max_epochs": 2}, loggers=["mlflow"]) == 0
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name(loggers.PROJECT)
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.run_name == "run" and record.info.status == "FINISHED"
    history = client.get_metric_history(record.info.run_id, "validation/force_rmse")
    assert [point.value for point in history] == pytest.approx(table_of(tmp_path / "run")["validation/force_rmse"])


def test_wandb_gets_a_run_for_each_training(folder, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("one", "two"):
        assert run(folder, tmp_path / name, stop={"max_epochs": 2}, loggers=["wandb"]) == 0
        assert wandb.run is None
        (records,) = (tmp_path / name / "wandb").glob("offline-run-*/run-*.wandb")
        values = table_of(tmp_path / name)["validation/force_rmse"]
        assert len(set(values)) == 2 and all(repr(float(value)).encode() in records.read_bytes() for value in values)
