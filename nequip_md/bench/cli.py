"""``nequip-md-bench``: time of one step of a model on this machine, by number of atoms."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_md.cli import command_parser, run
from nequip_md.errors import NequIPMDError

if TYPE_CHECKING:
    from nequip_md.bench.measure import Row

Report = Callable[[str], None]

OF_ENGINES = {
    "repeats": ("graph", 11, "timed evaluations, of which the median counts"),
    "steps": ("lammps", 20, "timed steps of LAMMPS"),
    "ranks": ("lammps", 1, "MPI processes of LAMMPS"),
}
"""Options that one engine alone obeys: the engine, their default and what they are."""


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
        "weights and the structure's elements: small, medium, large (Allegro), S, M, L, XL (NequIP)",
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
    add("--precision", choices=("fp64", "fp32", "tf32"), nargs="+", help="default: that of the artifact, else fp32")
    add(
        "--engine",
        choices=("graph", "lammps"),
        nargs="+",
        default=["graph"],
        help="graph: evaluation alone, neighbours found beforehand (default); lammps: molecular dynamics",
    )
    add(
        "--peer",
        action="store_true",
        help="time upstream's nequip-allegro beside it (engine graph, Allegro, both with weights that upstream draws)",
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


def complete(options: argparse.Namespace) -> None:
    """Fill in the defaults of :data:`OF_ENGINES`.

    Raises:
        NequIPMDError: an option was given whose engine is not timed.
    """
    for name, (engine, default, _) in OF_ENGINES.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif engine not in options.engine:
            raise NequIPMDError(
                f"--{name} belongs to --engine {engine}, but the engine is {' '.join(options.engine)}; "
                f"add --engine {engine}, or leave --{name} out"
            )


def threads_per_rank(threads: int | None, ranks: int, device: str) -> int:
    """OpenMP threads of each rank of LAMMPS; ``threads`` are for all ranks together.

    One on a GPU by default: more are of no use there, and LAMMPS wakes all of them whenever it wraps atoms into the box.
    """
    import torch

    return max(1, (threads or (1 if device == "cuda" else torch.get_num_threads())) // ranks)


def bench(options: argparse.Namespace, report: Report = print) -> list[Row]:
    """Measure everything that the options ask for and write the files; the table is left to the caller.

    Args:
        report: called with a line of text after each step.

    Raises:
        NequIPMDError: bad input, something that is not installed, or a failure that other sizes would not escape.
    """
    complete(options)
    import torch

    from nequip_md.artifact import load_artifact
    from nequip_md.bench import measure, peer
    from nequip_md.bench.compilation import Compiled, compile_all, model_config
    from nequip_md.bench.lammps_run import lammps_row
    from nequip_md.bench.report import check_files, plot, write_json
    from nequip_md.bench.structures import check_types, read_structure, systems

    structure = read_structure(options.structure) if options.structure else None
    boxes = systems(options.sizes, structure)
    config = model_config(options.model, structure, options.allow_pickle)
    compiled = Compiled()
    if config is None:
        artifact = load_artifact(options.model, device=options.device)
        compiled.artifacts[artifact.metadata["precision"]] = artifact
        if options.peer or set(options.precision or compiled.artifacts) != set(compiled.artifacts):
            raise NequIPMDError(
                f"{options.model} is compiled ({', '.join(compiled.artifacts)}): for another precision or a "
                "peer, give its checkpoint or a preset"
            )
    if options.peer and "graph" not in options.engine:
        raise NequIPMDError("the peer is timed with --engine graph only")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if compiled.artifacts:
        device = artifact.device.type
    type_names = config.type_names if config else artifact.type_names
    check_types(boxes[0], type_names)
    if options.peer:
        peer.check_peer(config, boxes[0])
    check_files(options.output, options.plot)
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = threads_per_rank(options.threads, options.ranks, device)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nequip-md-bench-") as scratch:
        folder = Path(scratch)
        if config:
            precisions = list(dict.fromkeys(options.precision or ["fp32"]))
            compiled = compile_all(
                options.model,
                config,
                precisions,
                device,
                boxes[0],
                folder,
                with_peer=options.peer,
                allow_pickle=options.allow_pickle,
                report=report,
            )
        facts = {
            "model": options.model,
            "weights": "drawn by upstream" if options.peer else None,
            "system": str(options.structure or "liquid water"),
            "machine": measure.machine(device),
            "date": date.today().isoformat(),
            "command": shlex.join(["nequip-md-bench", *sys.argv[1:]]),
            "repeats": options.repeats,
            "lammps": {"steps": options.steps, "ranks": options.ranks, "threads_per_rank": threads},
            "relative_force_difference": compiled.differences,
            "compilation_s": compiled.seconds,
        }
        for atoms in boxes:
            new = []
            if "graph" in options.engine:
                new = measure.graph_rows(compiled.artifacts, compiled.peers, atoms, device, options.repeats)
            edges = new[0].edges_per_atom if new else None
            if device == "cuda":
                torch.cuda.empty_cache()  # for LAMMPS, which is another process
            for precision, artifact in compiled.artifacts.items() if "lammps" in options.engine else ():
                new.append(
                    lammps_row(
                        artifact.path,
                        type_names,
                        precision,
                        atoms,
                        folder,
                        steps=options.steps,
                        ranks=options.ranks,
                        threads=threads,
                    )
                )
                new[-1].edges_per_atom = edges
            for row in new:
                result = row.error or f"{row.ms_per_step:.3f} ms/step, {row.us_per_atom_step:.2f} µs/atom/step"
                report(f"{row.engine}, {row.who}, {row.precision}, {row.atoms:,} atoms: {result}")
            rows += new
            if options.output:
                write_json(options.output, rows, facts)
    if options.plot:
        plot(
            options.plot,
            rows,
            f"{options.model}, {facts['system']}, {facts['machine']['gpu'] or facts['machine']['cpu']}",
        )
    return rows


def main() -> None:
    options = parser().parse_args()

    def program() -> int:
        from rich.console import Console

        from nequip_md.bench.report import results_table

        console = Console(highlight=False)
        with console.status("measuring"):
            rows = bench(options, report=lambda line: console.print(line, soft_wrap=True, markup=False))
        table = results_table(rows, f"{options.model}, {options.structure or 'liquid water'}")
        Console(width=max(100, console.width)).print(table)  # a narrower one would cut numbers
        return int(all(row.error for row in rows))

    run(program)


if __name__ == "__main__":
    main()
