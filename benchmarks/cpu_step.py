"""Time of one force evaluation on the CPU: this package's artifact beside upstream's own AOTInductor artifact.

    python benchmarks/cpu_step.py --preset medium --repeats 11 --output benchmarks/results/cpu_step.json

The same as ``nequip-md-bench medium --device cpu --peer --sizes 192``, with one comparison as the result: both artifacts are
compiled by this script, from the same weights, and evaluated in turn on the same structure (water, 192 atoms by default) with neighbour
lists made beforehand. Their forces are compared first. This package's compilation time includes the checks of ``nequip-md-export``.
Needs nequip-md[test].
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from nequip_md.bench.cli import parser as bench_parser
from nequip_md.bench.run import BenchOptions, bench
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import ALLEGRO_PRESETS


def measure(model: str, molecules: int, repeats: int, threads: int, report=print) -> dict:
    """Run the comparison on ``molecules``^3 water molecules; times in seconds.

    Args:
        model: an Allegro preset or checkpoint.

    Raises:
        NequIPMDError: upstream's packages are missing, the two models differ, or one of them failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        arguments = [
            model,
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--peer",
            "--sizes",
            3 * molecules**3,
            "--repeats",
            repeats,
            "--threads",
            threads,
            "--output",
            output,
        ]
        ours, theirs = bench(BenchOptions(**vars(bench_parser().parse_args([str(a) for a in arguments]))), report)
        facts = json.loads(output.read_text())
    for row in (ours, theirs):
        if row.error:
            raise NequIPMDError(f"{row.who} failed: {row.error}")
    machine = facts["machine"]
    return {
        "work": f"Allegro {model}, fp32, {ours.atoms} atoms of water, {ours.edges_per_atom:.0f} edges/atom, "
        f"{threads} threads, graph evaluation",
        "ours_s": ours.ms_per_step / 1e3,
        "peer_s": theirs.ms_per_step / 1e3,
        "ratio": theirs.ms_per_step / ours.ms_per_step,
        "ours_compile_s": facts["compilation_s"]["ours fp32"],
        "peer_compile_s": facts["compilation_s"]["peer fp32"],
        "force_difference": facts["relative_force_difference"]["fp32"],
        "repeats": repeats,
        "peer": f"{theirs.who}, AOTInductor",
        "machine": f"{machine['cpu']}, PyTorch {machine['torch'].split('+')[0]}",
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium", choices=ALLEGRO_PRESETS)
    parser.add_argument("--molecules", type=int, default=4, help="n: n^3 water molecules (default 4: 192 atoms)")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    def program() -> None:
        result = measure(arguments.preset, arguments.molecules, arguments.repeats, arguments.threads)
        ours, theirs = result["ours_s"], result["peer_s"]
        print(
            f"{result['work']}\n  ours {ours * 1e3:8.1f} ms   upstream {theirs * 1e3:8.1f} ms   ratio {result['ratio']:.1f}"
            f"\n  compile: ours {result['ours_compile_s']:.0f} s, upstream {result['peer_compile_s']:.0f} s; "
            f"largest force difference {result['force_difference']:.1e}"
        )
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
