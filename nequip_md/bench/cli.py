"""``nequip-md-bench``: time of one step of a model on this machine, by number of atoms."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nequip_md.bench.run import ENGINES, OF_ENGINES, BenchOptions, bench
from nequip_md.cli import command_parser, exit_status


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    result = command_parser("bench", "Time of one step of a model on this machine, by number of atoms.")
    add = result.add_argument
    add(
        "model",
        metavar="MODEL",
        help="checkpoint (.nqmd, .ckpt, .nequip.zip), artifact (.pt2), or a preset with random "
        "weights and the structure's elements: nano, tiny, small, medium, large (Allegro), S, M, L, XL (NequIP)",
    )
    add(
        "--sizes",
        type=positive,
        nargs="+",
        metavar="ATOMS",
        help="about so many atoms each (default: 192 1536 12288 of water, a structure as it is)",
    )
    add(
        "--structure",
        type=Path,
        metavar="FILE",
        help="repeat this structure: a LAMMPS data file with masses or any format of ASE's (default: liquid water)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: that of the artifact, else cuda where there is one")
    add(
        "--precision",
        dest="precisions",
        choices=("fp64", "fp32", "tf32"),
        nargs="+",
        help="default: that of the artifact, else fp32",
    )
    add(
        "--engine",
        dest="engines",
        choices=ENGINES,
        nargs="+",
        default=["graph"],
        help="graph: evaluation alone, neighbours found beforehand (default); lammps: molecular dynamics",
    )
    add(
        "--peer",
        action="store_true",
        help="time upstream's nequip or nequip-allegro beside it (engine graph, both with weights that upstream draws)",
    )
    for name, (_, default, explanation) in OF_ENGINES.items():
        add(f"--{name}", type=positive, help=f"{explanation} (default: {default})")
    add(
        "--threads",
        type=positive,
        help="CPU threads; LAMMPS' ranks share them (default: as many as PyTorch takes; "
        "on cuda one for each rank of LAMMPS)",
    )
    add("--output", type=Path, metavar="results.json", help="write all numbers there, after every size")
    add("--plot", type=Path, metavar="plot.png", help="draw time and memory over the number of atoms")
    add("--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status, which is 1 if nothing could be measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser().parse_args(arguments)

    def program() -> int:
        options = BenchOptions(**vars(parsed), command=shlex.join(["nequip-md-bench", *arguments]))
        from rich.console import Console

        from nequip_md.bench.report import results_table

        console = Console(highlight=False)
        with console.status("measuring"):
            rows = bench(options, report=lambda line: console.print(line, soft_wrap=True, markup=False))
        table = results_table(rows, f"{options.model}, {options.structure or 'liquid water'}")
        Console(width=max(100, console.width)).print(table)  # a narrower one would cut numbers
        return int(all(row.error for row in rows))

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
