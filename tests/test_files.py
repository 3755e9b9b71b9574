"""Files given to the wrong program: each is recognised by its content, and the message says what to do with it."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.lj import LennardJones

import nequip_md
from nequip_md.artifact import load_artifact
from nequip_md.bench.compilation import model_config
from nequip_md.calculators import NequIPMDCalculator
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, export_command, file_kind
from nequip_md.info.model_file import model_facts
from nequip_md.training.cli import main as train

ROOT = Path(__file__).resolve().parents[1]
WATER = ROOT / "examples" / "lammps" / "water"
UPSTREAM = ROOT / "tests" / "data" / "upstream" / "nequip-0.16.2_allegro-0.8.1_nequip.ckpt"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """The output of a real training run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    frames = []
    for distance in (1.0, 1.1, 1.2, 1.3):
        atoms = Atoms("Ar2", positions=[[0, 0, 0], [distance, 0, 0]], cell=[9, 9, 9], pbc=True)
        atoms.calc = LennardJones(rc=1.8)
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(folder / "train.extxyz", frames)
    model = {
        "kind": "allegro",
        "type_names": ["Ar"],
        "cutoff": 1.8,
        "l_max": 1,
        "num_layers": 1,
        "num_scalar_features": 4,
        "num_tensor_features": 2,
    }
    content = {"model": model, "data": {"train": "train.extxyz", "validation_split": 1}, "stop": {"max_epochs": 1}}
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    assert train([str(folder / "train.yaml"), "-o", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def files(run_folder, small_models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "config.yaml").write_text("run: [train]\ntraining_module:\n  _target_: nequip.train.EMALightningModule\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "old.nequip.pth")
    shutil.copy(run_folder / "last.ckpt", folder / "alone.ckpt")
    os.mkfifo(folder / "pipe")
    (folder / "words.txt").write_text("model of data\n")
    return {
        "artifact": small_models("allegro_fp64")[1],
        "native": WATER / "water.nqmd",
        "upstream": UPSTREAM,
        "state": run_folder / "last.ckpt",
        "state alone": folder / "alone.ckpt",
        "yaml": WATER / "train.yaml",
        "upstream yaml": folder / "config.yaml",
        "torchscript": folder / "old.nequip.pth",
        "folder": run_folder,
        "pipe": folder / "pipe",
        "text": folder / "words.txt",
    }


def test_kinds(files, tmp_path):
    kinds = {
        "artifact": FileKind.ARTIFACT,
        "native": FileKind.CHECKPOINT,
        "upstream": FileKind.UPSTREAM_CHECKPOINT,
        "state": FileKind.TRAINING_STATE,
        "state alone": FileKind.TRAINING_STATE,
        "yaml": FileKind.TRAINING_FILE,
        "upstream yaml": FileKind.UPSTREAM_TRAINING_FILE,
        "torchscript": FileKind.OTHER_ARTIFACT,
        "folder": FileKind.FOLDER,
        "pipe": FileKind.NOT_A_FILE,
        "text": FileKind.UNKNOWN,
    }
    assert {name: file_kind(path) for name, path in files.items()} == kinds
    assert file_kind(tmp_path / "absent") is FileKind.UNKNOWN
    for name in ("artifact", "native", "state"):  # truncated files are not recognised, but give no traceback
        (tmp_path / "cut").write_bytes(files[name].read_bytes()[:5000])
        assert file_kind(tmp_path / "cut") in (FileKind.UNKNOWN, kinds[name])


MISTAKES = [
    (NequIPMDCalculator, "native", "is a checkpoint of nequip-md, not a compiled.*first: {export} -o .*/water.pt2"),
    (
        NequIPMDCalculator,
        "upstream",
        "is a checkpoint of upstream's nequip-train, not .*first: {export} -o .*_nequip.pt2",
    ),
    (
        NequIPMDCalculator,
        "state",
        "state of a training run.*best model of that run: nequip-md-export .*run/best.nqmd -o ",
    ),
    (NequIPMDCalculator, "state alone", "best model of that run: nequip-md-export best.nqmd -o best.pt2"),
    (NequIPMDCalculator, "yaml", "a training file of nequip-md.*nequip-md-train {path}; its best.nqmd"),
    (NequIPMDCalculator, "upstream yaml", "train the model first with upstream's nequip-train"),
    (NequIPMDCalculator, "torchscript", "compiled model of another program.*checkpoint that it was made from"),
    (NequIPMDCalculator, "folder", "is a folder"),
    (NequIPMDCalculator, "pipe", "is a pipe or a device"),
    (load_artifact, "native", "first: {export}"),
    (
        nequip_md.load_checkpoint,
        "artifact",
        "is a compiled model of nequip-md, not a checkpoint; it is compiled already",
    ),
    (nequip_md.load_checkpoint, "state", "state of a training run.*give the best model of that run: .*run/best.nqmd"),
    (nequip_md.load_checkpoint, "yaml", "nequip-md-train {path}; its best.nqmd is the checkpoint"),
    (nequip_md.load_checkpoint, "torchscript", "compiled model of another program"),
    (lambda path: model_config(str(path), None), "state", "give the best model of that run"),
    (lambda path: model_config(str(path), None), "yaml", "train the model first"),
    (model_facts, "yaml", "is a training file of nequip-md; give a compiled model"),
    (model_facts, "pipe", "is not a regular file"),
]


@pytest.mark.parametrize("reader, name, words", MISTAKES)
def test_the_wrong_file_is_named_with_the_remedy(reader, name, words, files):
    path = files[name]
    pattern = words.format(path=path, export=f"nequip-md-export {path}")
    with pytest.raises(NequIPMDError, match=pattern) as caught:
        reader(path)
    assert str(path) in str(caught.value)


def test_models_given_to_the_trainer(files, capsys):
    for name in ("native", "artifact", "state"):
        assert train([str(files[name])]) == 1
        message = capsys.readouterr().err
        assert "not a training file (YAML); docs/training.md" in message and len(message.splitlines()) == 1


def test_the_remedy_is_a_command_for_any_name():
    assert export_command(Path("a b/water.nequip.zip")) == "nequip-md-export 'a b/water.nequip.zip' -o 'a b/water.pt2'"
    assert export_command(Path("epoch=3.ckpt")) == "nequip-md-export epoch=3.ckpt -o epoch=3.pt2"


def test_info_of_a_training_state(run_folder):
    facts, best = model_facts(run_folder / "last.ckpt"), model_facts(run_folder / "best.nqmd")
    assert facts["training"]["epoch"] == best["training"]["epoch"] == 1
    same = ("model", "type_names", "cutoff", "hyperparameters")
    assert all(facts[key] == best[key] for key in same)
