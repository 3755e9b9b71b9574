"""Hardware counters of the kernels of one evaluation, from NVIDIA's Nsight Compute.

    python benchmarks/counters.py medium --size 12288 --precision fp32 --output benchmarks/results/counters.json

Exports the preset (random weights) or checkpoint, or takes an artifact for CUDA, evaluates it on water once without and once with
counters, and prints for each kernel its time, the utilization (%) of arithmetic, memory and both levels of cache, and the stall reasons of
its warps: the fraction of the cycles between two instructions of a warp in each state. Needs ncu on the PATH.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from nequip_md.artifact import load_artifact
from nequip_md.bench.cli import positive
from nequip_md.bench.compilation import compile_all, model_config
from nequip_md.bench.measure import machine
from nequip_md.bench.structures import water_box
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph

SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "WarpStateStats", "LaunchStats")
COUNTERS = {
    "ms": "gpu__time_duration.sum",
    "compute": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory": "dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "L1": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
STALL = "issue_stalled_"
FEWEST_MS = 0.01
"""Shorter kernels are left out of the table."""


def evaluate(artifact_path: str, size: int) -> None:
    """Evaluate an artifact under ncu, which profiles the second evaluation only."""
    artifact = load_artifact(artifact_path)
    graph = build_graph(Structure.from_ase(water_box(size), artifact.type_names), artifact.pair_cutoffs).to("cuda")
    artifact(graph)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    artifact(graph)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def read(text: str) -> list[dict]:
    """Rows of ncu's raw page as CSV: names, units, then one line for each kernel."""
    lines = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(lines) < 3:
        raise NequIPMDError(f"ncu counted nothing; it says: {' '.join(text.split())[-400:]}")
    names, units, *kernels = lines

    def number(text: str) -> float | None:
        try:
            return float(text.replace(",", ""))
        except ValueError:
            return None

    rows = []
    for values in kernels:
        line = dict(zip(names, values))
        row = {
            "kernel": line["Kernel Name"].split("(")[0],
            "grid": line.get("Grid Size"),
            "block": line.get("Block Size"),
        }
        for key, counter in COUNTERS.items():
            name = next((n for n in names if n.endswith(counter)), None)
            row[key] = number(line[name]) if name else None
            if key == "ms" and row[key] is not None:
                row[key] *= MILLISECONDS.get(units[names.index(name)], 1.0)
        states = {
            n.split(STALL)[1].split("_per_")[0]: number(v)
            for n, v in line.items()
            if STALL in n and "_per_issue" in n and v
        }
        total = sum(filter(None, states.values()))
        row["waits"] = (
            {
                state: round(cycles / total, 2)
                for state, cycles in sorted(states.items(), key=lambda s: -(s[1] or 0))[:4]
                if cycles
            }
            if total
            else {}
        )
        rows.append(row)
    return rows


def print_table(rows: list[dict]) -> None:
    numbers = [key for key in COUNTERS if key not in ("ms", "registers")]
    print(f"{'kernel':28} {'ms':>8} " + " ".join(f"{key:>8}" for key in numbers) + "  waits")
    for row in rows:
        if (row["ms"] or 0) >= FEWEST_MS:
            cells = " ".join(f"{'-' if row[key] is None else format(row[key], '.0f'):>8}" for key in numbers)
            print(
                f"{row['kernel'][:28]:28} {row['ms']:8.3f} {cells}  "
                + ", ".join(f"{s} {p:.0%}" for s, p in row["waits"].items())
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="medium", help="preset, checkpoint or artifact (default: medium)")
    parser.add_argument("--size", type=positive, default=12288, metavar="ATOMS")
    parser.add_argument("--precision", choices=("fp64", "fp32", "tf32"), default="fp32")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--under-ncu", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.under_ncu:
        evaluate(options.model, options.size)
        return

    def program() -> None:
        if not torch.cuda.is_available() or not shutil.which("ncu"):
            raise NequIPMDError("this needs a CUDA device, and ncu of NVIDIA's Nsight Compute on the PATH")
        atoms = water_box(options.size)
        with tempfile.TemporaryDirectory() as folder:
            config, artifact = model_config(options.model, None), Path(options.model)
            if config is not None:
                compile_all(options.model, config, [options.precision], "cuda", atoms, Path(folder), with_peer=False)
                artifact = Path(folder) / f"{options.precision}.pt2"
            log = Path(folder) / "counters.csv"
            command = [
                "ncu",
                "--profile-from-start",
                "off",
                "--clock-control",
                "none",
                "--csv",
                "--page",
                "raw",
                "--log-file",
                log,
                *(word for section in SECTIONS for word in ("--section", section)),
                sys.executable,
                __file__,
                artifact,
                "--size",
                options.size,
                "--under-ncu",
            ]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            rows = read((log.read_text() if log.exists() else "") or done.stdout + done.stderr)
        print_table(rows)
        if options.output:
            facts = {
                "model": Path(options.model).name,
                "atoms": len(atoms),
                "machine": machine("cuda"),
                "date": date.today().isoformat(),
                "command": "python " + " ".join(sys.argv),
            }
            options.output.write_text(json.dumps({**facts, "kernels": rows}, indent=1) + "\n")

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
