"""Training goes on from a checkpoint that upstream's ``nequip-train`` has trained until it has learned something."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "benchmarks")]
import fine_tuning as benchmark

from nequip_md import checkpoint, evaluate
from nequip_md.training.cli import main
from nequip_md.training.config import AUTO_VALUES
from nequip_md.training.data.cli import main as data_command

TYPES = ["Cu", "Al", "Ni"]
OFFSETS = {"Cu": -40.0, "Al": 7.0, "Ni": -310.0}
"""eV; the new labels have another zero of energy."""


@pytest.fixture(scope="module")
def learned(trained_by_upstream) -> Path:
    """The folder of ``learned.ckpt``, a model of copper and aluminium, and ``frames.extxyz``, which it was trained on."""
    return trained_by_upstream("learned", "learned")


def alloys(count: int, seed: int) -> list:
    """Cells of three elements, denser than those that upstream's model has seen, with energies of another zero."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * (1, 1, 2)
        atoms.symbols = rng.choice(list(OFFSETS), len(atoms))
        atoms.rattle(0.12, rng=rng)
        atoms.calc = EMT()
        results = {
            "forces": atoms.get_forces(),
            "energy": atoms.get_potential_energy() + sum(OFFSETS[s] for s in atoms.symbols),
        }
        atoms.calc.results = results
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def few(learned, tmp_path_factory) -> Path:
    """A folder with ``train``, ``validation`` and ``test`` frames of alloys, beside ``old`` ones of those elements that were known."""
    folder = tmp_path_factory.mktemp("few")
    for name, count, seed in (("train", 6, 1), ("validation", 6, 2), ("test", 12, 3)):
        ase.io.write(folder / f"{name}.extxyz", alloys(count, seed))
    ase.io.write(folder / "old.extxyz", ase.io.read(learned / "frames.extxyz", ":20"))
    return folder


def tune(folder: Path, output: Path, model: dict, *flags: str, **sections) -> int:
    content = {
        "model": model,
        "data": {"train": "train.extxyz", "validation": "validation.extxyz", "test": "test.extxyz", "batch_size": 3},
        "optimizer": {"learning_rate": 0.01, "ema_decay": 0.9, **sections.pop("optimizer", {})},
        "schedule": {"kind": "cosine"},
        "stop": {"max_epochs": 15},
        "compile": "no",
        "report_page": False,
    }
    content["data"] |= sections.pop("data", {})
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump({**content, **sections}))
    return main([str(path), "--output", str(output), *flags])


def metrics(output: Path) -> dict:
    return checkpoint.read_info(output / "best.nqmd").training["metrics"]["test"]


def force_rmse(model: Path, data: Path) -> float:
    return evaluate(model, data).all["force"]["rmse"]


def test_upstreams_model_has_learned_something(learned):
    forces = np.concatenate([atoms.get_forces() for atoms in ase.io.read(learned / "frames.extxyz", ":")])
    assert force_rmse(learned / "learned.ckpt", learned / "frames.extxyz") < 0.1 * np.sqrt(np.mean(forces**2))


def new_model(source: Path) -> dict:
    """The options of upstream's model, for weights drawn anew."""
    options = checkpoint.read_info(source).config.model_dump()
    return {key: value for key, value in options.items() if key not in AUTO_VALUES}


def test_it_needs_fewer_frames_than_a_new_model(learned, few, tmp_path, capsys):
    """A new element, another zero of energy, other densities; with the same frames, steps and learning rate."""
    source = learned / "learned.ckpt"
    found = {}
    for name, model in (("tuned", {"checkpoint": str(source)}), ("scratch", new_model(source))):
        assert tune(few, tmp_path / name, {**model, "type_names": TYPES}) == 0
        found[name] = metrics(tmp_path / name)
    assert found["tuned"]["force_rmse"] < 0.6 * found["scratch"]["force_rmse"]
    assert found["tuned"]["energy_rmse"] < 0.6 * found["scratch"]["energy_rmse"]
    log = capsys.readouterr().out
    assert f"training starts from the weights of {source}" in log and "energies before training: RMSE" in log
    shifts = checkpoint.read_info(tmp_path / "tuned" / "best.nqmd").config.energy_shifts
    assert shifts == pytest.approx(OFFSETS, abs=2.0)


def test_old_frames_keep_what_was_known(learned, few, tmp_path, capsys):
    """Frames of the first training have a weight of their own beside the new ones, and are predicted better than without them."""
    source, old = {"checkpoint": str(learned / "learned.ckpt"), "type_names": TYPES}, few / "old.extxyz"
    arguments = ["convert", str(old), "-o", str(few / "replay.extxyz"), "--weight", "0.5", "--without", "energy"]
    assert data_command(arguments) == 0
    assert tune(few, tmp_path / "alone", source) == 0
    assert tune(few, tmp_path / "both", source, data={"train": ["train.extxyz", "replay.extxyz"]}) == 0
    assert force_rmse(tmp_path / "both" / "best.nqmd", old) < 0.7 * force_rmse(tmp_path / "alone" / "best.nqmd", old)
    log = capsys.readouterr().out
    assert "weights of the training frames (config_weight): 0.5 to 1" in log and "no energy shifts fit" not in log


def test_files_with_two_zeros_of_energy_are_told_apart(learned, few, tmp_path, capsys):
    source = {"checkpoint": str(learned / "learned.ckpt"), "type_names": TYPES}
    files = {"train": ["train.extxyz", "old.extxyz"]}
    assert tune(few, tmp_path / "run", source, data=files, stop={"max_epochs": 1}) == 0
    log = capsys.readouterr().out
    assert "no energy shifts fit all files" in log and f"eV/atom {few / 'old.extxyz'}" in log


def test_frozen_and_slow_layers(learned, few, tmp_path):
    source = {"checkpoint": str(learned / "learned.ckpt"), "type_names": TYPES}
    optimizer = {"freeze": ["two_body_mlp.*"], "rate_factors": {"layers.*": 0.01}, "ema_decay": None}
    assert tune(few, tmp_path / "run", source, optimizer=optimizer, stop={"max_epochs": 2}) == 0
    before, after = (
        checkpoint.load(path).state_dict() for path in (learned / "learned.ckpt", tmp_path / "run" / "best.nqmd")
    )
    largest = {
        prefix: max((after[n] - before[n]).abs().max().item() for n in before if n.startswith(prefix))
        for prefix in ("two_body_mlp.", "layers.", "readout.")
    }
    assert largest["two_body_mlp."] == 0 < largest["layers."] < 0.1 * largest["readout."]


def test_a_run_is_checked_and_resumed(learned, few, tmp_path, capsys):
    source = {"checkpoint": str(learned / "learned.ckpt"), "type_names": TYPES}
    frozen = {"freeze": ["two_body_mlp.*"]}
    assert tune(few, tmp_path / "run", source, "--check", optimizer=frozen) == 0
    assert "224 of them are frozen" in capsys.readouterr().out
    assert tune(few, tmp_path / "run", source, "--check", optimizer={"freeze": ["mlp.*"]}) == 1
    assert "no weight has a name like 'mlp.*'" in capsys.readouterr().err
    constant = {"schedule": {"kind": "constant"}}
    assert tune(few, tmp_path / "whole", source, stop={"max_epochs": 4}, **constant) == 0
    assert tune(few, tmp_path / "run", source, stop={"max_epochs": 2}, **constant) == 0
    assert tune(few, tmp_path / "run", source, "--resume", stop={"max_epochs": 4}, **constant) == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_code_in_a_checkpoint_runs_only_if_allowed(learned, few, tmp_path, capsys):
    content = torch.load(learned / "learned.ckpt", weights_only=True)
    content["callbacks"]["mine"] = {"folder": Path("somewhere")}
    torch.save(content, tmp_path / "code.ckpt")
    source = {"checkpoint": str(tmp_path / "code.ckpt"), "type_names": TYPES}
    assert tune(few, tmp_path / "run", source, "--check") == 1
    assert "model.allow_pickle: true in a training file" in capsys.readouterr().err
    assert tune(few, tmp_path / "run", {**source, "allow_pickle": True}, stop={"max_epochs": 1}) == 0


def test_the_benchmark_runs_on_other_data(learned, few, tmp_path, monkeypatch):
    """Each way of training once, from the model that is there."""
    monkeypatch.setattr(benchmark, "RATES", {"from scratch": [0.01], "fine-tuned": [0.01]})
    arguments = [
        *("--first", learned / "frames.extxyz", "--first-test", few / "old.extxyz", "--data", few / "test.extxyz"),
        *("--checkpoint", learned / "learned.ckpt", "--types", "Cu", "Al", "--new-types", "Ni"),
        *("--frames", 3, "--epochs", 2, "--replay", 4),
    ]
    result = benchmark.measure(benchmark.parser().parse_args([str(a) for a in arguments]), tmp_path)
    assert list(result["runs"]) == list(benchmark.WAYS)
    for found in result["runs"].values():
        assert 0 < found["test"]["force_rmse"] < 10 and 0 < found["force_rmse_of_first_data"] < 10
    assert result["first"]["global_step"] > 0 and result["first"]["test"] is None


def test_frames_of_the_benchmark_are_hotter():
    frames = alloys(6, 4)
    frames.sort(key=lambda atoms: atoms.get_potential_energy())
    assert benchmark.hotter(frames[1:], frames[:3]) == frames[3:]
