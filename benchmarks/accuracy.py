"""Errors of node energies, edge gradients and forces, relative to the same weights in float64.

    python benchmarks/accuracy.py --device cuda --output benchmarks/results/accuracy.json
    python benchmarks/accuracy.py --device cuda --checkpoint medium.nqmd --artifacts fp32.pt2 tf32.pt2

The reference is the model in eager PyTorch in float64, on water, with random weights, with and without ZBL repulsion (which is
computed in float64 in every form and, being large, hides errors of the network). An error is the norm of the difference over
the norm of the reference. Compared are eager PyTorch in fp32 with TF32 off and the artifacts of each precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from nequip_md.bench.compilation import preset_config, random_checkpoint
from nequip_md.bench.measure import machine
from nequip_md.bench.structures import water_box
from nequip_md.checkpoint import load
from nequip_md.cli import run
from nequip_md.export import load_artifact
from nequip_md.export.cli import export
from nequip_md.graph import Graph, build_graph
from nequip_md.model import PRESETS, PotentialConfig, build_model, energy_and_gradient, with_dtype


Pair = tuple[Tensor, Tensor]
"""Node energies and edge gradients."""


def with_forces(pair: Pair, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """F of an atom: the gradients of its edges, less those of edges to it."""
    energies, gradient = pair
    forces = gradient.new_zeros((graph.num_nodes, 3), dtype=torch.float64)
    for sign, nodes in zip((1, -1), graph.edge_index):
        forces.index_add_(0, nodes, sign * gradient.double())
    return energies, gradient, forces


def relative_errors(name: str, value: Pair, exact: Pair, scale: Pair, graph: Graph, report: Callable[[str], None] = print) -> dict[str, float]:
    """Norms of value - exact over those of ``scale``."""
    norm = torch.linalg.vector_norm
    result = {part: float(norm(a.double() - b) / norm(c)) for part, a, b, c
              in zip(("energies", "edge_gradients", "forces"), *[with_forces(pair, graph) for pair in (value, exact, scale)])}
    report(f"  {name:35} " + "   ".join(f"{part.replace('_', ' ')} {error:.2e}" for part, error in result.items()))
    return result


def compile_artifact(checkpoint: Path, path: Path, precision: str, device: str) -> None:
    """In a process of its own."""
    export(checkpoint, path, device=device, precision=precision, report=lambda _: None)


def errors(
    config: PotentialConfig, graph: Graph, device: str, report: Callable[[str], None] = print
) -> dict[str, dict[str, float]]:
    """Errors of ``energies``, ``edge_gradients`` and ``forces`` by the form that was evaluated, for random weights."""
    torch.backends.cuda.matmul.allow_tf32 = False
    graph = graph.to(device)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(config, Path(folder) / "model.nqmd")
        model = load(checkpoint).to(device)
        exact = energy_and_gradient(with_dtype(model, "float64").to(device), *graph.tensors)

        def compare(name: str, value: tuple[Tensor, Tensor]) -> None:
            result[name] = relative_errors(name, value, exact, exact, graph, report)

        compare("eager PyTorch, fp32, TF32 off", energy_and_gradient(model, *graph.tensors))
        precisions = ("fp32", "tf32") if device == "cuda" else ("fp32",)
        paths = [Path(folder) / f"{precision}.pt2" for precision in precisions]
        with ProcessPoolExecutor(len(paths), multiprocessing.get_context("spawn")) as pool:
            for future in [pool.submit(compile_artifact, checkpoint, *pair, device) for pair in zip(paths, precisions)]:
                future.result()
        for precision, path in zip(precisions, paths):
            compare(f"artifact {precision}", load_artifact(path)(graph))
    return result


def errors_of(checkpoint: Path, artifacts: list[Path], size: int, device: str) -> dict[str, dict[str, float]]:
    """Errors of artifacts that were made from a checkpoint, relative to what it gives without its ZBL repulsion."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = load(checkpoint)
    config = model.config
    graph = build_graph(water_box(size), config.type_names, config.cutoff).to(device)
    without = build_model(config.model_copy(update={"pair_potential": None, "dtype": "float64"}))
    without.load_state_dict({name: value.double() if value.is_floating_point() else value for name, value in model.state_dict().items()
                             if name in without.state_dict()})
    exact = energy_and_gradient(with_dtype(model, "float64").to(device), *graph.tensors)
    network = energy_and_gradient(without.to(device), *graph.tensors)
    forms = {"eager PyTorch, fp32, TF32 off": lambda: energy_and_gradient(model.to(device), *graph.tensors)}
    forms |= {f"artifact {path.name}": lambda path=path: load_artifact(path)(graph) for path in artifacts}
    return {name: relative_errors(name, form(), exact, network, graph) for name, form in forms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium", choices=PRESETS)
    parser.add_argument("--size", type=int, default=375, help="about so many atoms of water (default 375)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--without-zbl", action="store_true", help="leave out the model with ZBL")
    parser.add_argument("--checkpoint", type=Path, help="with --artifacts: measure these instead")
    parser.add_argument("--artifacts", type=Path, nargs="+", default=[])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    def program() -> None:
        if options.checkpoint:
            result = errors_of(options.checkpoint, options.artifacts, options.size, options.device)
        else:
            result = of_preset()
        result |= {"machine": machine(options.device), "date": date.today().isoformat(),
                   "command": "python " + " ".join(sys.argv)}
        if options.output:
            options.output.write_text(json.dumps(result, indent=2) + "\n")

    def of_preset() -> dict:
        atoms = water_box(options.size)
        config = preset_config(options.preset, atoms)
        graph = build_graph(atoms, config.type_names, config.cutoff)
        result = {"work": f"{options.preset}, {len(atoms)} atoms of water, {graph.num_edges / len(atoms):.1f} edges/atom: "
                          "norm of the difference to float64 over its norm"}
        for name, pair_potential in (("without ZBL", None), ("with ZBL", config.pair_potential))[: 1 if options.without_zbl else 2]:
            print(f"{options.preset} {name}, {len(atoms)} atoms of water, {options.device}", flush=True)
            result[name] = errors(config.model_copy(update={"pair_potential": pair_potential}), graph, options.device)
        return result

    run(program)


if __name__ == "__main__":
    main()
