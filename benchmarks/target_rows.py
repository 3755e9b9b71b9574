"""The rows of ``targets.py``, which are this project's targets, measured with the functions of ``nequip-md-bench``.

All models are Allegro with random weights. Molecular dynamics is that of ``nequip-md-bench --engine lammps``: whole steps of
0.5 fs, neighbour lists included.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cpu_step
from ase import Atoms

from nequip_md.bench.cli import parser as bench_parser
from nequip_md.bench.compilation import preset_config, random_checkpoint
from nequip_md.bench.measure import Row
from nequip_md.bench.run import BenchOptions, bench
from nequip_md.bench.structures import octanal, read_structure, repeated, water_box
from nequip_md.errors import NequIPMDError
from nequip_md.export import export_checkpoint

PAPER = "published for LAMMPS-Kokkos on an H100, read off a figure (Tan et al., arXiv:2504.16068)"
KNOWN_PEER = {"H200": 18.8, "H100": 20.0}
"""µs/atom of nequip-allegro 0.8.3, medium, fp32 without TF32, AOTInductor and Triton, 12,288 atoms of water, torch 2.11."""
KNOWN = "measured earlier on such a GPU: fp32 without TF32, AOTInductor and enable_TritonContracter"
MANY_STEPS, STEPS, FEW_STEPS = 2000, 20, 3
REFERENCE_ATOMS = 98304
"""8 times 12,288, the size with whose time per atom that of the largest system is compared."""
FEMTOSECONDS = 0.5

Need = tuple[str, str, str]
"""Preset, structure, precision of an artifact."""


@dataclass(frozen=True)
class Figure:
    """A measured number, and that of the peer."""

    ours: float
    peer: float | None = None
    peer_source: str | None = None
    """None: the same run."""
    note: str | None = None


@dataclass(frozen=True)
class Target:
    work: str
    unit: str
    target: float | None


@dataclass(frozen=True)
class Work:
    """Rows of one measurement."""

    measure: Callable[[Session], list[Figure]]
    targets: list[Target]
    needs: tuple[Need, ...] = ()
    on_cpu: bool = False


@dataclass
class Session:
    """State that the rows of one call share: options, and artifacts, which are compiled once."""

    device: str
    gpu: str
    folder: Path
    """Folder of artifacts and structures; existing artifacts are used."""
    dhfr: Path
    peer: bool = True
    from_atoms: int = 2 * 131712
    max_atoms: int = 4300000
    seconds: float = 450.0
    """Limit of the key "largest": a size that would exceed it is not started, except the first one after the reference."""
    many_steps: int = MANY_STEPS
    report: Callable[[str], None] = print
    artifacts: dict[Need, Path | NequIPMDError] = field(default_factory=dict)

    def structure(self, name: str) -> Path:
        """Path of a structure other than water."""
        if name == "dhfr":
            if not self.dhfr.is_file():
                raise NequIPMDError(f"there is no {self.dhfr}; name the LAMMPS data file of solvated DHFR with --dhfr")
            return self.dhfr
        made = {"molecule": octanal, "96": lambda: repeated(water_box(24), 96)}
        path = self.folder / f"{name}.extxyz"
        made[name]().write(path)
        return path

    def compile(self, needs: list[Need], jobs: int) -> None:
        """Compile the artifacts, several at a time; a failure is stored for the rows that need the artifact."""
        waiting = {}
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            for need in dict.fromkeys(needs):
                path = self.folder / f"{'-'.join(need)}-{self.device}.pt2"
                self.artifacts[need] = path
                if path.is_file():
                    continue
                try:
                    sample = water_box(192) if need[1] == "water" else read_structure(self.structure(need[1]))
                except NequIPMDError as error:
                    self.artifacts[need] = error
                    continue
                self.report(f"compiling {' '.join(need)} for {self.device}")
                waiting[need] = pool.submit(compile_artifact, need[0], sample, need[2], self.device, path)
            for need, future in waiting.items():
                if error := future.exception():
                    self.artifacts[need] = NequIPMDError(f"the artifact {' '.join(need)} was not made: {error}")

    def artifact(self, *need: str) -> Path:
        """
        Raises:
            NequIPMDError: it could not be made.
        """
        made = self.artifacts[need]
        if isinstance(made, NequIPMDError):
            raise made
        return made

    def bench(self, model: str | Path, *arguments: str | int | Path) -> list[Row]:
        """Run ``nequip-md-bench`` with these arguments.

        Raises:
            NequIPMDError: a row could not be measured.
        """
        options = bench_parser().parse_args([str(a) for a in (model, "--device", self.device, *arguments)])
        rows = bench(BenchOptions(**vars(options)), self.report)
        for row in rows:
            if row.error:
                raise NequIPMDError(f"{row.engine}, {row.who}, {row.atoms:,} atoms: {row.error}")
        return rows

    def known_peer(self) -> tuple[float | None, str | None]:
        for name, figure in KNOWN_PEER.items():
            if name in self.gpu:
                return figure, KNOWN
        return None, None


def compile_artifact(name: str, atoms: Atoms, precision: str, device: str, path: Path) -> None:
    """Export a preset with random weights for the elements of ``atoms``; runs in a process of its own."""
    checkpoint = random_checkpoint(preset_config(name, atoms), path.with_suffix(".nqmd"))
    export_checkpoint(checkpoint, path, device=device, precision=precision)


def medium_fp32(session: Session) -> list[Figure]:
    options = ["--sizes", 12288, "--engine", "graph", "lammps"]
    if session.peer:
        ours, theirs, lammps = session.bench("medium", "--precision", "fp32", "--peer", *options)
        graph = Figure(ours.us_per_atom_step, theirs.us_per_atom_step)
    else:
        ours, lammps = session.bench(session.artifact("medium", "water", "fp32"), *options)
        graph = Figure(ours.us_per_atom_step, *session.known_peer())
    return [graph, Figure(lammps.us_per_atom_step, 23.7, PAPER)]


def medium_tf32(session: Session) -> list[Figure]:
    (row,) = session.bench(session.artifact("medium", "water", "tf32"), "--sizes", 12288)
    return [Figure(row.us_per_atom_step, *session.known_peer())]


def in_lammps(preset: str, published: float) -> Callable[[Session], list[Figure]]:
    def measure(session: Session) -> list[Figure]:
        (row,) = session.bench(session.artifact(preset, "water", "fp32"), "--sizes", 12288, "--engine", "lammps")
        return [Figure(row.us_per_atom_step, published, PAPER)]

    return measure


def little(preset: str, elements: str, structure: str, published: float) -> Callable[[Session], list[Figure]]:
    def measure(session: Session) -> list[Figure]:
        (row,) = session.bench(
            session.artifact(preset, elements, "fp32"),
            "--structure",
            session.structure(structure),
            "--engine",
            "lammps",
            "--steps",
            session.many_steps,
        )
        return [Figure(row.steps_per_s, published, PAPER)]

    return measure


def largest(session: Session) -> list[Figure]:
    """Double the number of atoms until LAMMPS fails for any reason, or ``max_atoms`` or ``seconds`` would be exceeded."""
    artifact = session.artifact("medium", "water", "fp32")
    ran: list[Row] = []
    size, end = REFERENCE_ATOMS, f"no larger system than {session.max_atoms:,} atoms was tried"
    start = before = time.perf_counter()
    while size <= session.max_atoms:
        last, before = time.perf_counter() - before, time.perf_counter()
        if len(ran) > 1 and before - start + 2 * last > session.seconds:
            end = f"{size:,} atoms were not tried, for want of time"
            break
        try:
            ran += session.bench(artifact, "--sizes", size, "--engine", "lammps", "--steps", FEW_STEPS)
        except NequIPMDError as error:
            if not ran:
                raise
            end = f"{size:,} atoms failed"
            session.report(f"{end}: {error}")
            break
        size = 2 * size if len(ran) > 1 else session.from_atoms
    loss = 100 * (ran[-1].us_per_atom_step / ran[0].us_per_atom_step - 1)
    memory = "51,000 atoms on 141 GB" if "H200" in session.gpu else "29,000 atoms on 80 GB"
    known = 51000 if "H200" in session.gpu else 29000 if "H100" in session.gpu else None
    source = f"known from earlier runs: about {memory}" if known else None
    return [
        Figure(ran[-1].atoms, known, source, end),
        Figure(
            loss,
            note=f"{ran[-1].atoms:,} atoms, {ran[-1].us_per_atom_step:.3f} µs/atom/step, against {ran[0].atoms:,} "
            f"atoms, {ran[0].us_per_atom_step:.3f}",
        ),
    ]


def overhead(session: Session) -> list[Figure]:
    """Time of a whole step minus that of one evaluation. The evaluation, in Python, is not divided into pieces, so memory may not suffice."""
    artifact = session.artifact("medium", "water", "fp32")
    (lammps,) = session.bench(artifact, "--sizes", REFERENCE_ATOMS, "--engine", "lammps")
    for part in (1, 2, 4, 8):
        try:
            (graph,) = session.bench(artifact, "--sizes", REFERENCE_ATOMS // part)
            break
        except NequIPMDError as error:
            if part == 8 or "out of memory" not in str(error):
                raise
            session.report(str(error))
    return [
        Figure(
            lammps.us_per_atom_step - graph.us_per_atom_step,
            note=f"LAMMPS {lammps.us_per_atom_step:.3f} at {lammps.atoms:,} atoms, "
            f"graph {graph.us_per_atom_step:.3f} at {graph.atoms:,} atoms",
        )
    ]


def dhfr(session: Session) -> list[Figure]:
    (row,) = session.bench(
        session.artifact("medium", "dhfr", "fp32"),
        "--structure",
        session.structure("dhfr"),
        "--engine",
        "lammps",
        "--steps",
        5 * STEPS,
    )
    return [Figure(row.steps_per_s), Figure(row.steps_per_s * FEMTOSECONDS * 86400e-6)]


def cpu(session: Session) -> list[Figure]:
    result = cpu_step.measure("medium", molecules=4, repeats=11, threads=2, report=session.report)
    return [Figure(1e3 * result["ours_s"], 1e3 * result["peer_s"])]


_MEDIUM = ("medium", "water", "fp32")
ROWS: dict[str, Work] = {
    "medium-fp32": Work(
        medium_fp32,
        [
            Target("medium, fp32-accurate, 12,288 atoms of water, graph evaluation", "µs/atom", 1.5),
            Target("medium, fp32-accurate, 12,288 atoms of water, LAMMPS, all included", "µs/atom/step", 1.8),
        ],
        (_MEDIUM,),
    ),
    "medium-tf32": Work(
        medium_tf32,
        [Target("medium, tf32, 12,288 atoms of water, graph evaluation", "µs/atom", 0.8)],
        (("medium", "water", "tf32"),),
    ),
    "small": Work(
        in_lammps("small", 12.2),
        [Target("small, fp32-accurate, 12,288 atoms of water, LAMMPS, all included", "µs/atom/step", 1.2)],
        (("small", "water", "fp32"),),
    ),
    "large": Work(
        in_lammps("large", 120.0),
        [Target("large, fp32-accurate, 12,288 atoms of water, LAMMPS, all included", "µs/atom/step", 10.0)],
        (("large", "water", "fp32"),),
    ),
    "96-atoms": Work(
        little("medium", "water", "96", 310.0),
        [Target("medium, fp32-accurate, 96 atoms of water, LAMMPS", "steps/s", 4000.0)],
        (_MEDIUM,),
    ),
    "molecule": Work(
        little("small", "molecule", "molecule", 1456.0),
        [Target("small, fp32-accurate, molecule of 25 atoms (octanal), open box, LAMMPS", "steps/s", 8000.0)],
        (("small", "molecule", "fp32"),),
    ),
    "overhead": Work(
        overhead,
        [
            Target(
                "medium, fp32-accurate, 98,304 atoms of water, LAMMPS beyond the graph evaluation", "µs/atom/step", 0.3
            )
        ],
        (_MEDIUM,),
    ),
    "dhfr": Work(
        dhfr,
        [
            Target("medium, fp32-accurate, DHFR in water, 23,558 atoms, LAMMPS", "steps/s", None),
            Target("medium, fp32-accurate, DHFR in water, 23,558 atoms, LAMMPS, 0.5 fs", "ns/day", None),
        ],
        (("medium", "dhfr", "fp32"),),
    ),
    "largest": Work(
        largest,
        [
            Target("medium, fp32-accurate, largest system of water on one GPU, LAMMPS", "atoms", 4e6),
            Target("medium, fp32-accurate, largest system, time for an atom beyond that of 98,304 atoms", "%", 10.0),
        ],
        (_MEDIUM,),
    ),
    "cpu": Work(
        cpu, [Target("medium, fp32, 192 atoms of water, CPU, 2 threads, graph evaluation", "ms", 400.0)], on_cpu=True
    ),
}
