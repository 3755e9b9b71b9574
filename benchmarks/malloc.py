"""Time and page faults of a step in ASE, and peak memory, with freed memory kept and given back.

``python benchmarks/malloc.py ARTIFACT.pt2 STRUCTURE [--steps N]`` runs the same steps with and without
:func:`nequip_md.memory.keep_freed_memory`, in turn, each in a process of its own, and prints the medians of three runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

UNCHANGED = {"GLIBC_TUNABLES": "glibc.malloc.arena_test=8"}
"""Setting equal to the default, which makes nequip-md leave the allocator unchanged."""


def measure(artifact: str, structure: str, steps: int) -> dict[str, float]:
    """Median time of a step, s; page faults of a step; peak memory, MB."""
    import numpy as np
    from ase.io import read

    from nequip_md.calculators import NequIPMDCalculator

    atoms = read(structure)
    atoms.calc = NequIPMDCalculator(artifact)
    generator, start = np.random.default_rng(0), atoms.positions.copy()
    times, faults = [], []
    for step in range(steps + 3):
        atoms.positions = start + generator.normal(scale=0.01, size=start.shape)
        before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        atoms.get_forces()
        if step >= 3:
            times.append(time.perf_counter() - clock)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "ms per step": 1e3 * statistics.median(times),
        "faults per step": statistics.median(faults),
        "peak MB": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("structure", help="any file that ASE reads")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(measure(arguments.artifact, arguments.structure, arguments.steps)))
        return
    results: dict[str, list[dict[str, float]]] = {"as glibc does": [], "freed memory kept": []}
    for _ in range(3):
        for name, runs in results.items():
            environment = {**os.environ, **UNCHANGED} if name == "as glibc does" else os.environ
            command = [
                sys.executable,
                __file__,
                arguments.artifact,
                arguments.structure,
                "--steps",
                str(arguments.steps),
                "--once",
            ]
            runs.append(
                json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            )
    for name, runs in results.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:18}", "  ".join(f"{key} {value:9.1f}" for key, value in medians.items()))


if __name__ == "__main__":
    main()
