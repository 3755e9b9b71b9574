"""GPU time of one evaluation by kernel.

    python benchmarks/kernel_times.py medium --sizes 81 12288 --precision fp32 tf32 --output benchmarks/results/kernels.json

Exports the preset (random weights) or checkpoint for each precision and evaluates it on water or a structure. The table is
from PyTorch's profiler, the time of the whole evaluation from CUDA events without the profiler; the difference from the sum is time
between kernels. On a CPU the table holds the operators of PyTorch that the artifact calls; the rest of the evaluation is in loops
that Inductor and this package compiled into it, which the profiler does not record.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from ase import Atoms
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nequip_md.artifact import Artifact, load_artifact
from nequip_md.bench.cli import positive
from nequip_md.bench.compilation import compile_all, model_config
from nequip_md.bench.measure import machine, time_alternately
from nequip_md.bench.structures import check_types, read_structure, systems
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph

NAME_WIDTH = 70


def kernel_table(call: Callable[[], object], device: str, repeats: int) -> list[dict]:
    """Kernels of ``call`` (operators on the CPU): name, calls and ms for one call, the longest first."""
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
        if cuda:
            torch.cuda.synchronize()
    rows = []
    for event in profiler.key_averages():
        wanted = DeviceType.CUDA if cuda else DeviceType.CPU
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.device_type == wanted and microseconds > 0 and not getattr(event, "is_user_annotation", False):
            rows.append({"name": event.key, "calls": event.count / repeats, "ms": 1e-3 * microseconds / repeats})
    if not rows:
        raise NequIPMDError(f"PyTorch's profiler saw nothing on {device}; is another profiler using this device?")
    return sorted(rows, key=lambda row: -row["ms"])


def short(name: str) -> str:
    """A kernel's name without C++ template arguments, cut to the width of the table."""
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    name = re.sub(r"^void |\(.*\)$", "", name)
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"


def print_table(result: dict) -> None:
    print(f"\n{result['precision']}, {result['atoms']:,} atoms, {result['edges']:,} edges, {result['device']}")
    print(f"{'kernel':{NAME_WIDTH}} {'calls':>7} {'ms':>9}")
    for row in result["kernels"]:
        print(f"{short(row['name']):{NAME_WIDTH}} {row['calls']:7g} {row['ms']:9.4f}")
    print(f"{'sum':{NAME_WIDTH}} {sum(row['calls'] for row in result['kernels']):7g} {result['sum_ms']:9.4f}")
    print(
        f"{'whole evaluation, by events' if result['device'] == 'cuda' else 'whole evaluation':{NAME_WIDTH}} {'':7} "
        f"{result['whole_ms']:9.4f}",
        flush=True,
    )


def times(artifact: Artifact, precision: str, atoms: Atoms, repeats: int) -> dict:
    """Measure one size, and print its table."""
    device = artifact.device.type
    graph = build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs).to(device)

    def call():
        return artifact(graph)

    timed = time_alternately({precision: call}, device, repeats)[precision]
    if isinstance(timed, str):
        raise NequIPMDError(f"the evaluation failed: {timed}")
    kernels = kernel_table(call, device, repeats)
    result = {
        "precision": precision,
        "device": device,
        "atoms": len(atoms),
        "edges": graph.num_edges,
        "whole_ms": 1e3 * timed[0],
        "sum_ms": sum(row["ms"] for row in kernels),
        "kernels": kernels,
    }
    print_table(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="medium", help="preset, checkpoint or artifact (default: medium)")
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[12288],
        metavar="ATOMS",
        help="about so many atoms each (default 12288)",
    )
    parser.add_argument("--structure", type=Path, help="repeat this structure instead of water")
    parser.add_argument(
        "--precision", choices=("fp64", "fp32", "tf32"), nargs="+", help="default: fp32 tf32, on a CPU fp32"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=positive, default=11)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    def program() -> None:
        structure = read_structure(options.structure) if options.structure else None
        boxes = systems(options.sizes, structure)
        config = model_config(options.model, structure)
        results = []
        with tempfile.TemporaryDirectory() as folder:
            if config is None:
                artifact = load_artifact(options.model)
                artifacts = {artifact.metadata["precision"]: artifact}
            else:
                precisions = options.precision or (["fp32", "tf32"] if options.device == "cuda" else ["fp32"])
                artifacts = compile_all(
                    options.model, config, precisions, options.device, boxes[0], Path(folder), with_peer=False
                ).artifacts
            for precision, artifact in artifacts.items():
                check_types(boxes[0], artifact.type_names)
                results += [times(artifact, precision, atoms, options.repeats) for atoms in boxes]
        if options.output:
            facts = {
                "model": Path(options.model).name,
                "system": str(options.structure or "liquid water"),
                "machine": machine(options.device),
                "date": date.today().isoformat(),
                "command": "python " + " ".join(sys.argv),
            }
            options.output.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
