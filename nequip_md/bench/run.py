"""Time one step of a model over sizes: what ``nequip-md-bench`` does. Importing this module imports no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_md.errors import NequIPMDError

if TYPE_CHECKING:
    from nequip_md.bench.measure import Row

ENGINES = ("graph", "lammps")
OF_ENGINES = {
    "repeats": ("graph", 11, "timed evaluations, of which the median counts"),
    "steps": ("lammps", 20, "timed steps of LAMMPS"),
    "ranks": ("lammps", 1, "MPI processes of LAMMPS"),
}
"""Options that one engine alone obeys: the engine, their default and what they are."""


@dataclass
class BenchOptions:
    """Options of a benchmark: what is timed, and how.

    Attributes:
        model: a checkpoint, an artifact, or the name of a preset, which gets random weights.
        sizes: about so many atoms each; by default 192, 1536 and 12288 of water, a structure as it is.
        structure: file of a structure to repeat, in place of liquid water.
        device: ``cpu`` or ``cuda``; by default that of the artifact, else ``cuda`` where there is one.
        precisions: some of ``fp64``, ``fp32``, ``tf32``; by default that of the artifact, else ``fp32``.
        engines: ``graph`` (evaluation alone, neighbours found beforehand), ``lammps`` (molecular dynamics) or both.
        peer: time upstream's ``nequip`` or ``nequip-allegro`` beside it.
        repeats, steps, ranks: see :data:`OF_ENGINES`.
        threads: CPU threads, which LAMMPS' ranks share.
        output: JSON file of all numbers, written after every size.
        plot: picture of time and memory over the number of atoms.
        allow_pickle: permit upstream files whose format executes code stored in them.
        command: noted in ``output``.

    Raises:
        NequIPMDError: an unknown engine, or an option whose engine is not timed.
    """

    model: str
    sizes: Sequence[int] | None = None
    structure: Path | None = None
    device: str | None = None
    precisions: Sequence[str] | None = None
    engines: Sequence[str] = ("graph",)
    peer: bool = False
    repeats: int | None = None
    steps: int | None = None
    ranks: int | None = None
    threads: int | None = None
    output: Path | None = None
    plot: Path | None = None
    allow_pickle: bool = False
    command: str | None = None

    def __post_init__(self) -> None:
        if unknown := [engine for engine in self.engines if engine not in ENGINES]:
            raise NequIPMDError(f"engine {unknown[0]!r} is not known; choose from {', '.join(ENGINES)}")
        for name, (engine, default, _) in OF_ENGINES.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
            elif engine not in self.engines:
                raise NequIPMDError(
                    f"--{name} belongs to --engine {engine}, but the engine is {' '.join(self.engines)}; "
                    f"add --engine {engine}, or leave --{name} out"
                )


def threads_per_rank(threads: int | None, ranks: int, device: str) -> int:
    """OpenMP threads of each rank of LAMMPS; ``threads`` are for all ranks together.

    One on a GPU by default: more are of no use there, and LAMMPS wakes all of them whenever it wraps atoms into the box.
    """
    import torch

    return max(1, (threads or (1 if device == "cuda" else torch.get_num_threads())) // ranks)


def bench(options: BenchOptions, report: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Measure everything that the options ask for and write the files.

    Args:
        report: called with a line of text after each step.

    Returns:
        One row for each size, engine, precision and package; a row whose measurement failed says so in ``error``.

    Raises:
        NequIPMDError: bad input, something that is not installed, or a failure that other sizes would not escape.
    """
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
        if options.peer or set(options.precisions or compiled.artifacts) != set(compiled.artifacts):
            raise NequIPMDError(
                f"{options.model} is compiled ({', '.join(compiled.artifacts)}): for another precision or a "
                "peer, give its checkpoint or a preset"
            )
    if options.peer and "graph" not in options.engines:
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
            precisions = list(dict.fromkeys(options.precisions or ["fp32"]))
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
            "command": options.command,
            "repeats": options.repeats,
            "lammps": {"steps": options.steps, "ranks": options.ranks, "threads_per_rank": threads},
            "relative_force_difference": compiled.differences,
            "compilation_s": compiled.seconds,
        }
        for atoms in boxes:
            new = []
            if "graph" in options.engines:
                new = measure.graph_rows(compiled.artifacts, compiled.peers, atoms, device, options.repeats)
            edges = new[0].edges_per_atom if new else None
            if device == "cuda":
                torch.cuda.empty_cache()  # for LAMMPS, which is another process
            for precision, artifact in compiled.artifacts.items() if "lammps" in options.engines else ():
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
