"""``benchmarks/accuracy_speed.py``: presets in turn are trained, exported and timed. No times are asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from matplotlib.image import imread

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "benchmarks")]
import accuracy_speed

from nequip_md.errors import NequIPMDError
from nequip_md.model import PRESETS
from nequip_md.training.config import load_config


@pytest.fixture
def train_file(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(6):
        atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]] + rng.normal(scale=0.03, size=(3, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(3, 3)))
        frames.append(atoms)
    ase.io.write(tmp_path / "data.extxyz", frames)
    content = {
        "model": {"preset": "medium", "type_names": ["H", "O"], "cutoff": 3.0, "num_scalar_features": 8},
        "data": {"train": "data.extxyz", "validation_split": 1, "test": "data.extxyz", "batch_size": 5},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_preset_is_trained_and_timed(train_file, tmp_path):
    output, picture = tmp_path / "results.json", tmp_path / "picture.png"
    command = f"{train_file} --presets nano --epochs 2 --sizes 24 --device cpu --output {output} --plot {picture}"
    accuracy_speed.compare(accuracy_speed.parser().parse_args(command.split()))
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    assert (row["preset"], result["budget"], result["data"]) == ("nano", "2 epochs", ["data.extxyz"])
    assert row["test"]["force_rmse"] > 0 and list(row["us_per_atom_step"]) == ["24"] and row["best_epoch"] <= 2
    assert imread(picture).std() > 0.01


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_the_place_of_the_files_model(train_file, name):
    config = accuracy_speed.with_preset(load_config(train_file), name, {"max_epochs": 3}, Path("out"))
    assert config.model == {"preset": name, "type_names": ["H", "O"], "cutoff": 3.0}
    assert config.potential().cutoff == 3.0 and config.stop.max_epochs == 3


def test_models_are_compared_on_test_frames(train_file):
    content = yaml.safe_load(train_file.read_text())
    del content["data"]["test"]
    train_file.write_text(yaml.safe_dump(content))
    with pytest.raises(NequIPMDError, match="no test frames to compare models on; give data.test or data.test_split"):
        accuracy_speed.with_preset(load_config(train_file), "nano", {}, Path("out"))
