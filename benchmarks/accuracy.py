"""Errors of node energies, edge gradients and forces, relative to the same weights in float64.

    python benchmarks/accuracy.py --device cuda --preset small medium large --output benchmarks/results/accuracy.json
    python benchmarks/accuracy.py --device cuda --preset small --set parity=false num_tensor_features=48
    python benchmarks/accuracy.py --device cuda --checkpoint medium.nqmd --artifacts fp32.pt2 tf32.pt2

The reference is the model in eager PyTorch in float64 on the CPU, on water, with random weights, with and without ZBL repulsion (which is
always computed in float64 and, being large, hides errors of the network). An error is the norm of the difference divided by
the norm of the reference. It is given for eager PyTorch in fp32 with TF32 off and for the artifact of each precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from nequip_md.artifact import load_artifact
from nequip_md.bench.compilation import preset_config, random_checkpoint
from nequip_md.bench.measure import machine
from nequip_md.bench.report import check_files
from nequip_md.bench.structures import water_box
from nequip_md.checkpoint import load
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.export import export_checkpoint
from nequip_md.graph import Graph, Structure, build_graph
from nequip_md.model import PRESETS, PotentialConfig, build_model, energy_and_gradient, with_dtype

PRECISIONS = ("fp32", "tf32", "fp64")
JOBS = max(1, (os.cpu_count() or 1) // 2)
"""Number of artifacts that are compiled at the same time."""
Pair = tuple[Tensor, Tensor]
"""Node energies and edge gradients."""


PARTS = ("energies", "edge_gradients", "forces")


def with_forces(pair: Pair, graph: Graph) -> dict[str, Tensor]:
    """Node energies, edge gradients and forces in float64 on the CPU, where ``graph`` must be. The force on an atom is the sum of the
    gradients of its edges minus that of edges to it."""
    energies, gradient = (part.cpu().double() for part in pair)
    forces = torch.zeros((graph.num_nodes, 3), dtype=torch.float64)
    for sign, nodes in zip((1, -1), graph.edge_index):
        forces.index_add_(0, nodes, sign * gradient)
    return dict(zip(PARTS, (energies, gradient, forces)))


def relative_errors(
    name: str,
    value: dict[str, Tensor],
    exact: dict[str, Tensor],
    scale: dict[str, Tensor],
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Norms of value - exact, divided by the norms of ``scale``."""
    norm = torch.linalg.vector_norm
    result = {part: float(norm(value[part] - exact[part]) / norm(scale[part])) for part in PARTS}
    report(f"  {name:35} " + "   ".join(f"{part.replace('_', ' ')} {error:.2e}" for part, error in result.items()))
    return result


def changed(config: PotentialConfig, options: Sequence[str]) -> PotentialConfig:
    """``config`` with options that are written KEY=VALUE, the value as YAML.

    Raises:
        NequIPMDError: the model has no such option, or not with this value.
    """
    pairs = (option.partition("=")[::2] for option in options)
    try:
        return type(config).model_validate(config.model_dump() | {key: yaml.safe_load(value) for key, value in pairs})
    except (ValidationError, yaml.YAMLError) as error:
        raise NequIPMDError(f"--set {' '.join(options)}: {error}") from error


def compile_artifact(checkpoint: Path, path: Path, precision: str, device: str) -> None:
    """Export an artifact; runs in a process of its own."""
    export_checkpoint(checkpoint, path, device=device, precision=precision)


def errors(
    configs: dict[str, PotentialConfig],
    graph: Graph,
    device: str,
    precisions: Sequence[str] = PRECISIONS,
    report: Callable[[str], None] = print,
    keep: Callable[[dict], None] = lambda result: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of ``energies``, ``edge_gradients`` and ``forces`` by model and by the evaluated form, for random weights.

    ``keep`` is called with the results so far after each model, as large models take minutes to compile.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    result: dict[str, dict] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(JOBS, multiprocessing.get_context("spawn")) as pool,
    ):
        checkpoints = {
            name: random_checkpoint(config, Path(folder) / f"{k}.nqmd")
            for k, (name, config) in enumerate(configs.items())
        }
        paths = {
            (name, precision): checkpoint.with_suffix(f".{precision}.pt2")
            for name, checkpoint in checkpoints.items()
            for precision in precisions
        }
        made = {
            (name, precision): pool.submit(compile_artifact, checkpoints[name], path, precision, device)
            for (name, precision), path in paths.items()
        }
        for name, checkpoint in checkpoints.items():
            model = load(checkpoint)
            exact = with_forces(energy_and_gradient(with_dtype(model, "float64"), *graph.tensors), graph)
            on_device, forms = graph.to(device), result.setdefault(name, {})
            report(name)

            def compare(form: str, pair: Pair) -> None:
                forms[form] = relative_errors(form, with_forces(pair, graph), exact, exact, report)

            compare("eager PyTorch, fp32, TF32 off", energy_and_gradient(model.to(device), *on_device.tensors))
            for precision in precisions:
                if failure := made[name, precision].exception():
                    report(f"  artifact {precision} failed: {failure}")
                    forms[f"artifact {precision}"] = {"failure": str(failure)[:1000]}
                    continue
                compare(f"artifact {precision}", load_artifact(paths[name, precision])(on_device))
            keep(result)
    return result


def errors_of(checkpoint: Path, artifacts: list[Path], size: int, device: str) -> dict[str, dict[str, float]]:
    """Errors of artifacts of a checkpoint, relative to its results without ZBL repulsion."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = load(checkpoint)
    config = model.config
    graph = build_graph(Structure.from_ase(water_box(size), config.type_names), config.cutoff)
    on_device = graph.to(device)
    without = build_model(config.model_copy(update={"pair_potential": None, "dtype": "float64"}))
    without.load_state_dict(
        {
            name: value.double() if value.is_floating_point() else value
            for name, value in model.state_dict().items()
            if name in without.state_dict()
        }
    )
    exact, network = (
        with_forces(energy_and_gradient(form, *graph.tensors), graph)
        for form in (with_dtype(model, "float64"), without)
    )
    forms = {"eager PyTorch, fp32, TF32 off": lambda: energy_and_gradient(model.to(device), *on_device.tensors)}
    forms |= {f"artifact {path.name}": lambda path=path: load_artifact(path)(on_device) for path in artifacts}
    return {name: relative_errors(name, with_forces(form(), graph), exact, network) for name, form in forms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default=["medium"], choices=PRESETS, nargs="+")
    parser.add_argument("--size", type=int, default=375, help="about so many atoms of water (default 375)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", help="all that the device has by default")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the presets that are to differ"
    )
    parser.add_argument("--without-zbl", action="store_true", help="leave out the models with ZBL")
    parser.add_argument("--checkpoint", type=Path, help="with --artifacts: measure these instead")
    parser.add_argument("--artifacts", type=Path, nargs="+", default=[])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    def of_presets() -> None:
        atoms = water_box(options.size)
        configs = {}
        for preset in options.preset:
            config, name = changed(preset_config(preset, atoms), options.set), ", ".join([preset, *options.set])
            configs[f"{name}, without ZBL"] = config.model_copy(update={"pair_potential": None})
            if config.pair_potential and not options.without_zbl:
                configs[f"{name}, with ZBL"] = config
        graph = build_graph(Structure.from_ase(atoms, config.type_names), config.cutoff)
        work = f"{len(atoms)} atoms of water, {graph.num_edges / len(atoms):.1f} edges/atom: norm of the difference to float64 over its norm"
        precisions = options.precision or (PRECISIONS if options.device == "cuda" else ("fp32", "fp64"))
        errors(configs, graph, options.device, precisions, keep=lambda result: write({"work": work, **result}))

    def write(result: dict) -> None:
        facts = {
            "machine": machine(options.device),
            "date": date.today().isoformat(),
            "command": "python " + " ".join(sys.argv),
        }
        if options.output:
            options.output.write_text(json.dumps(result | facts, indent=1) + "\n")

    def program() -> None:
        check_files(options.output, None)
        if options.checkpoint:
            write(errors_of(options.checkpoint, options.artifacts, options.size, options.device))
        else:
            of_presets()

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
