"""Fine-tuning of a model that upstream trained, beside training from scratch on the same few frames.

    python benchmarks/fine_tuning.py --first acac_train_600K.xyz --first-test acac_test_MD_600K.xyz --types H C O \\
        --data ethanol_train.xyz --output RESULTS.json

Upstream's ``nequip-train`` trains a small Allegro model on ``--first``. From its ``.ckpt``, ``nequip-md-train`` goes on with a
few frames of ``--data`` in several :data:`WAYS`, and trains the same architecture from scratch on the same frames, with the
same number of steps. Other frames validate, which chooses the best model of a run and its learning rate; errors are those of the
frames that remain. ``--hotter`` takes frames of ``--data`` with more energy than any of ``--first``; ``--new-types`` are elements that
``--first`` lacks. The files above are of https://github.com/davkovacs/BOTNet-datasets: acetylacetone, then ethanol.
Needs nequip-md[test].
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms

from nequip_md import checkpoint, evaluate
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.training import train
from nequip_md.training.config import AUTO_VALUES
from nequip_md.training.data.cli import main as data_command

CUTOFF = 5.0
MODEL = {
    "l_max": 2,
    "num_layers": 2,
    "num_scalar_features": 32,
    "num_tensor_features": 16,
    "allegro_mlp_hidden_layers_depth": 1,
    "allegro_mlp_hidden_layers_width": 64,
    "scalar_embed_mlp_hidden_layers_width": 64,
    "readout_mlp_hidden_layers_width": 32,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
}
"""Upstream's options of the model."""


def upstream_file(data: str, types: list[str], epochs: int, validation: int) -> dict[str, Any]:
    """A training file of ``nequip-train`` (its names) for frames of one file, which gives ``first.ckpt``."""
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 5}
    metrics = {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"total_energy_rmse": 1.0, "forces_rmse": 1.0}}
    best = {"dirpath": ".", "filename": "first", "monitor": "val0_epoch/weighted_sum", "save_last": False}
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 0,
            "split_dataset": {"file_path": data, "train": len(ase.io.read(data, ":")) - validation, "val": validation},
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": types,
                    "chemical_species_to_atom_type_map": {name: name for name in types},
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
            ],
            "train_dataloader": {**loader, "shuffle": True},
            "val_dataloader": loader,
            "stats_manager": {"_target_": "nequip.data.CommonDataStatisticsManager", "type_names": types},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "max_epochs": epochs,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", **best}],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.99,
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": metrics,
            "train_metrics": metrics,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.005},
            "lr_scheduler": {
                "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": epochs},
                "interval": "epoch",
                "frequency": 1,
            },
            "model": {
                "_target_": "allegro.model.AllegroModel",
                "seed": 0,
                "model_dtype": "float32",
                "type_names": types,
                "r_max": CUTOFF,
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
                "per_type_energy_scales": "${training_data_stats:forces_rms}",
                **MODEL,
            },
        },
    }


def train_upstream(folder: Path, content: dict[str, Any]) -> Path:
    """Run ``nequip-train`` in a folder; returns the checkpoint.

    Raises:
        CalledProcessError: it failed.
    """
    (folder / "first.yaml").write_text(json.dumps(content))  # JSON is YAML
    program = Path(sys.executable).with_name("nequip-train")
    log = ["hydra.run.dir=log", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    subprocess.run([program, "-cp", folder, "-cn", "first", *log], cwd=folder, check=True)
    return folder / "first.ckpt"


def draw(frames: list[Atoms], sizes: dict[str, int], folder: Path, seed: int = 0) -> dict[str, Path]:
    """Frames, drawn without replacement, as a file for each part; ``rest`` are those that remain.

    Raises:
        NequIPMDError: there are not enough frames.
    """
    if sum(sizes.values()) >= len(frames):
        raise NequIPMDError(f"{sum(sizes.values())} of {len(frames)} frames leave none to test on; ask for fewer")
    order = np.random.default_rng(seed).permutation(len(frames))
    ends = np.cumsum([0, *sizes.values()])
    parts = {name: order[a:b] for name, a, b in zip(sizes, ends, ends[1:])} | {"rest": order[ends[-1] :]}
    for name, chosen in parts.items():
        ase.io.write(folder / f"{name}.extxyz", [frames[k] for k in chosen])
    return {name: folder / f"{name}.extxyz" for name in parts}


def hotter(frames: list[Atoms], others: list[Atoms]) -> list[Atoms]:
    """Those frames of a molecule whose energy is above that of all others."""
    highest = max(atoms.get_potential_energy() for atoms in others)
    return [atoms for atoms in frames if atoms.get_potential_energy() > highest]


def replay_file(frames: list[Atoms], count: int, weight: float, folder: Path) -> Path:
    """Frames of the first data set to train on beside the new ones, each with a weight below 1 and without its energy."""
    folder.mkdir()
    source, target = draw(frames, {"old": count}, folder, seed=1)["old"], folder / "replay.extxyz"
    arguments = ["convert", str(source), "-o", str(target), "--weight", str(weight), "--without", "energy"]
    if data_command(arguments):
        raise NequIPMDError(f"{source} could not be given the weight {weight}")
    return target


WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "fine-tuned": {},
    "fine-tuned, the first layers slowly": {"rate_factors": {"two_body_mlp.*": 0.1, "layers.0.*": 0.3}},
    "fine-tuned, the first layers frozen": {"freeze": ["two_body_mlp.*", "layers.0.*"]},
    "fine-tuned, with old frames": {},
}
"""Options of the optimizer by the way of training."""
RATES = {"from scratch": (1e-2, 2e-2, 4e-2), "fine-tuned": (5e-3, 1e-2)}
"""Learning rates that are tried; the other ways take the best one of "fine-tuned"."""


def training(
    way: str, rate: float, first: Path, types: list[str], files: dict[str, Path], epochs: int
) -> dict[str, Any]:
    """The training file of a run."""
    if way == "from scratch":
        model = checkpoint.read_info(first).config.model_dump()
        model = {key: value for key, value in model.items() if key not in AUTO_VALUES} | {"type_names": types}
    else:
        model = {"checkpoint": str(first), "type_names": types}
    train = [files["few"], files["replay"]] if way.endswith("old frames") else [files["few"]]
    return {
        "model": model,
        "data": {
            "train": [str(path) for path in train],
            "validation": str(files["validation"]),
            "test": str(files["rest"]),
            "batch_size": 5,
            "evaluation_batch_size": 25,
        },
        "loss": {"energy": 1.0, "force": 1.0},
        "optimizer": {"learning_rate": rate, "ema_decay": 0.99, "warmup_steps": 20, **WAYS[way]},
        "schedule": {"kind": "cosine"},
        "stop": {"max_epochs": epochs},
        "compile": "no",
        "report_page": False,
        "device": "cpu",
    }


def run(content: dict[str, Any], output: Path, old_test: Path) -> dict[str, Any]:
    """Train, and evaluate on frames of the first data set as well; errors in eV/atom and eV/angstrom."""
    start = time.perf_counter()
    result = train(content, output=output, overwrite=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **result.metrics, "force_rmse_of_first_data": force_rmse(result.best, old_test)}


def errors(model: Path, data: Path) -> dict[str, float]:
    """The test errors of energies (eV/atom) and forces (eV/angstrom)."""
    found = evaluate(model, data).all
    return {"energy_rmse": found["energy_per_atom"]["rmse"], "force_rmse": found["force"]["rmse"]}


def force_rmse(model: Path, data: Path) -> float:
    return errors(model, data)["force_rmse"]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs; errors of energies in eV/atom, of forces in eV/angstrom.

    Raises:
        NequIPMDError: a file that cannot be used.
    """
    start = time.perf_counter()
    first = options.checkpoint
    if first is None:
        content = upstream_file(
            str(options.first.resolve()), options.types, options.first_epochs, options.first_validation
        )
        first = train_upstream(folder, content)
    pretraining = time.perf_counter() - start
    old, frames = ase.io.read(options.first, ":"), ase.io.read(options.data, ":")
    frames = hotter(frames, old) if options.hotter else frames
    files = draw(frames, {"few": options.frames, "validation": options.frames}, folder)
    first_test = folder / "first_test.extxyz"
    ase.io.write(first_test, ase.io.read(options.first_test, f":{options.first_test_frames}"))
    files["replay"] = replay_file(old, options.replay, options.replay_weight, folder / "old")
    types = [*options.types, *options.new_types]
    results: dict[str, Any] = {}
    rates: dict[str, float] = {}

    def runs(way: str, candidates: Sequence[float]) -> None:
        found = {}
        for rate in candidates:
            output, epochs = folder / f"{way}, {rate}", options.epochs
            if way.endswith("old frames"):  # as many steps as the other ways take
                epochs = max(round(epochs * options.frames / (options.frames + options.replay)), 1)
            found[rate] = run(training(way, rate, first, types, files, epochs), output, first_test)
            print(f"{way}, learning rate {rate}: {found[rate]}", flush=True)
        rates[way] = min(found, key=lambda rate: found[rate]["validation"]["force_rmse"])
        results[way] = {"learning_rate": rates[way], **found[rates[way]], "tried": list(candidates)}

    for way in WAYS:
        runs(way, RATES[way] if way in RATES else [rates["fine-tuned"]])
    trained = checkpoint.read_info(first).training
    packages = ("nequip", "nequip-allegro", "torch")
    return {
        "work": f"{options.frames} frames of {options.data.name}, {options.epochs} epochs in batches of 5, after {trained['epoch'] + 1}"
        f" epochs of {options.first.name} by nequip-train",
        "first": {
            **trained,
            "force_rmse_of_first_data": force_rmse(first, first_test),
            "test": None if options.new_types else errors(first, files["rest"]),
        },
        "pretraining_s": None if options.checkpoint else pretraining,
        "runs": results,
        "versions": {name: version(name) for name in packages},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "date": date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--first", type=Path, required=True, help="frames that upstream trains on")
    add("--first-test", type=Path, required=True, help="other frames of that kind")
    add("--first-test-frames", type=int, default=200, help="so many of them are used")
    add("--first-epochs", type=int, default=16)
    add("--first-validation", type=int, default=50, help="frames of --first that are held out")
    add("--types", nargs="+", required=True, help="elements in --first")
    add("--checkpoint", type=Path, help="the model that an earlier run of this script has trained on --first")
    add("--data", type=Path, required=True, help="frames to draw the few from; the rest of them is for tests")
    add("--hotter", action="store_true", help="of --data, take frames with more energy than any of --first")
    add("--new-types", nargs="*", default=[], help="elements in --data that --first lacks")
    add("--frames", type=int, default=10, help="frames to train on, and as many for validation")
    add("--epochs", type=int, default=100)
    add("--replay", type=int, default=20, help="frames of --first in the run with old frames")
    add("--replay-weight", type=float, default=0.1)
    add("--threads", type=int)
    add("--output", type=Path)
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    def program() -> None:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
        for way, found in result["runs"].items():
            print(f"{way}: forces {1e3 * found['test']['force_rmse']:.1f} meV/angstrom")
        if options.output:
            options.output.write_text(json.dumps(result, indent=2) + "\n")

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
