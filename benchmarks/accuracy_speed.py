"""Accuracy against speed: each preset is trained with the same budget, exported and timed.

    python benchmarks/accuracy_speed.py train.yaml --presets nano tiny small --epochs 20 --output RESULTS.json --plot picture.png
    python benchmarks/accuracy_speed.py train.yaml --presets nano tiny small medium large --seconds 3600 --engine lammps --device cuda

The training file (docs/training.md) gives data, loss, optimizer and what all models have in common (types, cutoff, pair
potential); ``--presets`` take the place of its ``kind`` or ``preset``, ``--epochs`` and ``--seconds`` that of its ``stop``. It needs test
frames. A budget is short of what a model could learn: large models need more of it, and may want another learning rate than
small ones. Each model is timed on water, or on ``--structure``, as ``nequip-md-bench`` does, several times in turns.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nequip_md import checkpoint
from nequip_md.bench.measure import machine
from nequip_md.bench.report import check_files
from nequip_md.bench.run import ENGINES, BenchOptions, bench
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.export import export_checkpoint
from nequip_md.model import PRESETS, PotentialConfig
from nequip_md.training import train
from nequip_md.training.config import StopConfig, TrainingConfig, load_config
from nequip_md.training.folder import BEST

COMMON = set(PotentialConfig.model_fields)
"""Options of the model section that hold for every preset."""
TURNS = 5
"""Times that each model is timed; the fastest counts."""


def with_preset(config: TrainingConfig, name: str, stop: dict[str, Any], output: Path) -> TrainingConfig:
    """A training file's content for one preset.

    Raises:
        NequIPMDError: the file has no test frames, or goes on from a checkpoint.
    """
    if config.data.test is None and config.data.test_split is None:
        raise NequIPMDError(
            "the training file has no test frames to compare models on; give data.test or data.test_split"
        )
    if "checkpoint" in config.model:
        raise NequIPMDError(
            "the training file goes on from model.checkpoint, which has no other sizes; give model.preset"
        )
    model = {key: value for key, value in config.model.items() if key in COMMON} | {"preset": name}
    changes = {"model": model, "output": str(output), "report_page": False}
    if stop:
        changes["stop"] = StopConfig(**stop)
    config = config.model_copy(update=changes)
    config.potential()  # refuses what the preset does not have
    return config


def trained(config: TrainingConfig, name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one preset, or find it trained; errors of its test frames in eV/atom and eV/angstrom.

    Raises:
        NequIPMDError: training failed.
    """
    best, seconds = folder / name / BEST, None
    if not (options.reuse and best.is_file()):
        given = {"max_epochs": options.epochs, "max_time": options.seconds}
        stop = {key: value for key, value in given.items() if value is not None}
        if "max_time" in stop:
            stop.setdefault("max_epochs", 1_000_000)
        start = time.perf_counter()
        train(with_preset(config, name, stop, folder / name), overwrite=True)
        seconds = time.perf_counter() - start
    record = checkpoint.read_info(best).training
    return {
        "preset": name,
        "weights": sum(p.numel() for p in checkpoint.load(best).parameters()),
        "training_s": seconds,
        "best_epoch": record["epoch"],
        "test": {key: value for key, value in record["metrics"]["test"].items() if isinstance(value, float)},
    }


def timed(artifact: Path, options: argparse.Namespace) -> dict[int, float]:
    """Microseconds/atom/step by number of atoms.

    Raises:
        NequIPMDError: no size could be timed.
    """
    wanted = {
        "sizes": options.sizes,
        "structure": options.structure,
        "engines": [options.engine],
        "threads": options.threads,
    }
    rows = bench(BenchOptions(str(artifact), **wanted))
    if not any(row.us_per_atom_step for row in rows):
        raise NequIPMDError(f"{artifact.name} could not be timed: {rows[0].error}")
    return {row.atoms: row.us_per_atom_step for row in rows if row.us_per_atom_step is not None}


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Force errors over the time for an atom in the largest system that all models were timed on."""
    from matplotlib.figure import Figure

    atoms = max(set.intersection(*(set(row["us_per_atom_step"]) for row in rows)))
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        x, y = row["us_per_atom_step"][atoms], 1e3 * row["test"]["force_rmse"]
        axes.plot(x, y, "o", color="C0")
        axes.annotate(row["preset"], (x, y), xytext=(5, 5), textcoords="offset points")
    axes.set(xscale="log", xlabel=f"µs/atom/step, {atoms:,} atoms", ylabel="force RMSE, meV/Å", title=title)
    axes.set_ylim(0, 1.15e3 * max(row["test"]["force_rmse"] for row in rows))
    axes.margins(x=0.2)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)


def compare(options: argparse.Namespace, report: Callable[[str], None] = print) -> dict[str, Any]:
    """All presets that the options name: training, export, then times, which are taken in turns."""
    check_files(options.output, options.plot)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(options.config).model_copy(update={"device": device})
    budget = [] if options.epochs is None else [f"{options.epochs} epochs"]
    budget += [] if options.seconds is None else [f"{options.seconds:g} s"]
    result = {
        "budget": " or ".join(budget) or "that of the training file",
        "training_file": str(options.config),
        "data": [Path(path).name for path in config.data.train],
        "engine": options.engine,
        "precision": options.precision,
        "machine": machine(device),
        "date": date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder, artifacts = options.folder or Path(scratch), {}
        for name in options.presets:
            row = trained(config, name, options, folder)
            result["rows"].append(row)
            report(f"{name}: forces {1e3 * row['test']['force_rmse']:.1f} meV/Å")
            artifacts[name] = folder / name / f"{name}.pt2"
            if not (options.reuse and artifacts[name].is_file()):
                export_checkpoint(folder / name / BEST, artifacts[name], device=device, precision=options.precision)
        times = [{name: timed(artifact, options) for name, artifact in artifacts.items()} for _ in range(TURNS)]
        for row in result["rows"]:
            found = [turn[row["preset"]] for turn in times]
            row["us_per_atom_step"] = {n: min(turn[n] for turn in found if n in turn) for n in found[0]}
            report(
                f"{row['preset']}: {', '.join(f'{t:.2f} µs/atom/step at {n:,} atoms' for n, t in row['us_per_atom_step'].items())}"
            )
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        draw(result["rows"], options.plot, f"training: {result['budget']}")
    return result


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("config", type=Path, help="training file with test frames")
    add("--presets", nargs="+", default=["nano", "tiny", "small"], choices=PRESETS)
    add("--epochs", type=int, help="epochs for each model, instead of the file's stop")
    add("--seconds", type=float, help="seconds for each model, instead of the file's stop")
    add("--engine", choices=ENGINES, default="graph", help="graph: evaluation alone; lammps: molecular dynamics")
    add("--precision", choices=("fp64", "fp32", "tf32"), default="fp32")
    add("--device", choices=("cpu", "cuda"), help="of training and timing (default: cuda where there is one)")
    add(
        "--sizes",
        type=int,
        nargs="+",
        metavar="ATOMS",
        help="as for nequip-md-bench (default: 192 1536 12288 of water)",
    )
    add("--structure", type=Path, metavar="FILE", help="repeat this structure instead of water")
    add("--threads", type=int, help="CPU threads")
    add("--folder", type=Path, help="keep the trained models there")
    add("--reuse", action="store_true", help="take the models and artifacts that an earlier run has left in --folder")
    add("--output", type=Path, metavar="RESULTS.json")
    add("--plot", type=Path, metavar="PICTURE.png")
    return result


def main() -> None:
    options = parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.exit(exit_status(lambda: compare(options) and None))


if __name__ == "__main__":
    main()
