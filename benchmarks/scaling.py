"""Weak and strong scaling of LAMMPS with a model over MPI processes: time of a step, communication, efficiency.

    python benchmarks/scaling.py M --ranks 1 2 4 --weak 6000 --strong 24000 --output scaling.json --plot scaling.png

Weak scaling has as many atoms for each process (a box of water repeated), strong scaling as many in all. Each point is the median over
``--repeats`` runs of LAMMPS in turn, neighbour lists and communication included. For models with message passing, what the processes send
each other in a step (mean over processes) and how long that takes are those that ``pair_style nequip verbose yes`` prints. On GPUs each
process takes one, as far as there are enough; on CPUs each takes one thread. MODEL is what ``nequip-md-bench`` takes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

from ase import Atoms

from nequip_md.artifact import load_artifact
from nequip_md.bench.compilation import compile_all, model_config
from nequip_md.bench.lammps_run import INPUT, WARM_UP, boundary, failure, parse_output, run_lammps, write_data
from nequip_md.bench.measure import machine
from nequip_md.bench.report import check_files
from nequip_md.bench.structures import water_box
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError

SENT = re.compile(r"^  (?:features|gradients) for layer \d+ +(\S+) +\S+  MB sent\n +(\S+) +\S+  ms$", re.MULTILINE)


@dataclass
class Point:
    """One number of processes.

    Attributes:
        scaling: ``weak`` or ``strong``.
        ms_per_step: median time of a step.
        pair_ms_per_step: the pair style's part of it, mean over processes.
        exchanged_mb, exchange_ms: features and gradients that a process sends in a step, and the time of that, means over processes;
            0 for models without message passing.
        efficiency: time of one process for its share of the atoms, divided by ``ms_per_step``.
    """

    scaling: str
    ranks: int
    atoms: int
    ms_per_step: float
    pair_ms_per_step: float
    exchanged_mb: float
    exchange_ms: float
    efficiency: float | None = None


def divisions(ranks: int) -> tuple[int, int, int]:
    """How often a cube is repeated along each axis for so many processes; the least surface."""
    fits = [(a, b, ranks // (a * b)) for a in range(1, ranks + 1) for b in range(1, ranks + 1) if ranks % (a * b) == 0]
    return min(fits, key=lambda n: (n[0] * n[1] + n[1] * n[2] + n[2] * n[0], n[::-1]))


def measure(
    artifact: Path, type_names: Sequence[str], atoms: Atoms, ranks: int, steps: int
) -> tuple[float, float, float, float]:
    """Time of a step, the pair style's part, MB that a process sends in a step and the time of that; times in ms.

    Raises:
        NequIPMDError: LAMMPS or the plugin is missing, or the run failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "box.data", atoms, type_names)
        script = INPUT.replace("pair_style nequip", "pair_style nequip verbose yes").format(
            artifact=artifact.resolve(),
            types=" ".join(type_names),
            steps=steps,
            boundary=boundary(atoms),
            warm_up=WARM_UP,
        )
        done = run_lammps(script, folder, ranks=ranks, threads=1)
    if done.returncode:
        raise failure(done, len(atoms))
    seconds, pair = parse_output(done.stdout)
    exchanges = SENT.findall(done.stdout.split("evaluations: mean and maximum")[-1])
    sent, waited = (sum(float(pair[k]) for pair in exchanges) for k in (0, 1))
    return 1e3 * seconds, 1e3 * pair, sent, waited


def points(
    artifact: Path,
    type_names: Sequence[str],
    ranks: Sequence[int],
    weak: int | None,
    strong: int | None,
    steps: int,
    repeats: int,
    report=print,
) -> list[Point]:
    """Measure every number of processes, the smallest of which is what the others are compared with.

    Args:
        weak, strong: about so many atoms for each process, and in all; None leaves that kind of scaling out.
    """
    boxes = {}
    for count in sorted(set(ranks)):
        if weak:
            boxes["weak", count] = water_box(weak).repeat(divisions(count))
        if strong:
            boxes["strong", count] = water_box(strong)
    runs: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {key: [] for key in boxes}
    for turn in range(repeats):
        for (scaling, count), atoms in boxes.items():
            runs[scaling, count].append(measure(artifact, type_names, atoms, count, steps))
            report(
                f"{scaling}, {count} processes, {len(atoms):,} atoms, run {turn + 1}: {runs[scaling, count][-1][0]:.2f} ms/step"
            )
    result = [
        Point(scaling, count, len(boxes[scaling, count]), *(median(column) for column in zip(*found)))
        for (scaling, count), found in runs.items()
    ]
    for point in result:
        first = next(other for other in result if other.scaling == point.scaling)
        share = first.ms_per_step * first.ranks / first.atoms * point.atoms / point.ranks
        point.efficiency = share / point.ms_per_step
    return result


def plot(path: Path, result: Sequence[Point], title: str) -> None:
    """Time of a step over the number of processes, measured and as it would be without any loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for colour, scaling in zip(("tab:blue", "tab:orange"), ("weak", "strong")):
        line = [point for point in result if point.scaling == scaling]
        if not line:
            continue
        x = [point.ranks for point in line]
        what = f"{line[0].atoms // line[0].ranks:,} atoms each" if scaling == "weak" else f"{line[0].atoms:,} atoms"
        axes.plot(x, [point.ms_per_step for point in line], "o-", color=colour, label=f"{scaling}: {what}")
        axes.plot(x, [point.ms_per_step * point.efficiency for point in line], ":", color=colour)
        for point in line[1:]:
            place = {"xytext": (-4, 8), "textcoords": "offset points", "ha": "right"}
            axes.annotate(f"{point.efficiency:.0%}", (point.ranks, point.ms_per_step), **place)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({point.ranks for point in result})))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="MPI processes", ylabel="ms per step (dotted: no loss)")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of MPI processes (default: 1 2)")
    parser.add_argument("--weak", type=int, metavar="ATOMS", help="weak scaling with so many atoms for each process")
    parser.add_argument("--strong", type=int, metavar="ATOMS", help="strong scaling of so many atoms")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "fp64", "tf32"), default="fp32")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each run (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts (default: 3)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()

    def program() -> None:
        if not options.weak and not options.strong:
            raise NequIPMDError("there is nothing to measure: give --weak ATOMS, --strong ATOMS, or both")
        if min(*options.ranks, options.steps, options.repeats) < 1:
            raise NequIPMDError("--ranks, --steps and --repeats must be 1 or more")
        check_files(options.output, options.plot)
        config = model_config(options.model, None)
        with tempfile.TemporaryDirectory() as name:
            artifact = Path(options.model)
            if config is not None:
                made = compile_all(
                    options.model,
                    config,
                    [options.precision],
                    options.device,
                    water_box(192),
                    Path(name),
                    with_peer=False,
                )
                artifact = Path(made.artifacts[options.precision].path)
            metadata = load_artifact(artifact, device=options.device).metadata
            result = points(
                artifact,
                metadata["type_names"].split(),
                options.ranks,
                options.weak,
                options.strong,
                options.steps,
                options.repeats,
            )
        facts = machine(options.device)
        where = f"{facts['gpu'] or facts['cpu']}, PyTorch {facts['torch'].split('+')[0]}"
        work = f"{options.model}, {metadata['precision']}, water, LAMMPS"
        for point in result:
            print(
                f"{point.scaling:6} {point.ranks:4} processes {point.atoms:10,} atoms {point.ms_per_step:10.2f} ms/step, "
                f"{point.exchanged_mb:8.2f} MB sent in {point.exchange_ms:8.2f} ms, efficiency {point.efficiency:.1%}"
            )
        if options.output:
            content = {
                "work": work,
                "machine": where,
                "steps": options.steps,
                "repeats": options.repeats,
                "date": date.today().isoformat(),
                "command": "python " + " ".join(sys.argv),
                "points": [asdict(point) for point in result],
            }
            options.output.write_text(json.dumps(content, indent=2) + "\n")
        if options.plot:
            plot(options.plot, result, f"{work}, {where}")

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
