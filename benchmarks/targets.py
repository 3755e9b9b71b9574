"""Measure this project's targets in speed and size, row by row.

    python benchmarks/targets.py                              # all rows
    python benchmarks/targets.py --only medium-fp32 molecule  # rows by their keys; --list names them

Measured rows replace those in benchmarks/results/targets.json; other rows are not changed. If a row fails, it is written with null,
the reason is printed, and other rows are still measured. Needs LAMMPS and the plugin; the peer (nequip-allegro) is measured in the
same run if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
import tempfile
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import torch
from target_rows import ROWS, Figure, Session, Target, Work

from nequip_md.bench.measure import machine
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "targets.json"
DHFR = ROOT.parent / "shared" / "data" / "dhfr" / "dhfr_minimized.data"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--only", nargs="+", choices=ROWS, metavar="KEY", help="these rows (default: all)")
    add("--list", action="store_true", help="print keys, rows and targets, and measure nothing")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="of all rows but the key cpu (default: cuda)")
    add("--no-peer", action="store_true", help="do not measure nequip-allegro in medium-fp32 although it is installed")
    add(
        "--dhfr",
        type=Path,
        default=DHFR,
        metavar="FILE",
        help="LAMMPS data file of DHFR in water (default: shared/data/dhfr/dhfr_minimized.data beside the repository)",
    )
    add("--from-atoms", type=int, default=2 * 131712, help="largest: where doubling begins (default: 263,424)")
    add("--max-atoms", type=int, default=4300000, help="largest: no larger system is tried (default: 4,300,000)")
    add(
        "--seconds",
        type=float,
        default=450.0,
        help="largest: no size is begun that would exceed this, except the first after 98,304 atoms (default: 450)",
    )
    add(
        "--artifacts",
        type=Path,
        metavar="DIR",
        help="keep artifacts there and use those that lie there already (of the same code: this is not checked)",
    )
    add(
        "--jobs",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 3),
        help="artifacts compiled at a time (default: cores / 3)",
    )
    add(
        "--output", type=Path, default=RESULTS, help="the file to write into (default: benchmarks/results/targets.json)"
    )
    return result


def entry(target: Target, figure: Figure | None, machine_name: str | None, command: str) -> dict:
    """One element of the result file; ``figure`` is None if the measurement failed."""
    numbers = {"peer": figure and figure.peer, "ours": figure and figure.ours, "target": target.target}
    numbers = {key: None if value is None else float(f"{value:.6g}") for key, value in numbers.items()}
    result = {
        "work": target.work,
        **numbers,
        "unit": target.unit,
        "machine": machine_name,
        "command": command,
        "date": date.today().isoformat(),
    }
    if figure and figure.peer_source:
        result["peer_source"] = figure.peer_source
    if figure and figure.note:
        result["note"] = figure.note
    return result


def merge(old: list[dict], new: list[dict]) -> list[dict]:
    """Replace entries with the same work, in the order of the table; unknown works come last."""
    order = [target.work for work in ROWS.values() for target in work.targets]
    merged = list({e["work"]: e for e in old + new}.values())
    return sorted(merged, key=lambda e: order.index(e["work"]) if e["work"] in order else len(order))


def write(path: Path, new: list[dict]) -> None:
    """Write the result file; rows that were never measured have nulls."""
    old = json.loads(path.read_text()) if path.exists() else []
    known = {e["work"] for e in old + new}
    missing = [
        entry(target, None, None, f"python benchmarks/targets.py --only {key}") | {"date": None}
        for key, work in ROWS.items()
        for target in work.targets
        if target.work not in known
    ]
    path.write_text(json.dumps(merge(old, new + missing), indent=2, ensure_ascii=False) + "\n")


def machine_text(device: str, threads: int) -> str:
    facts = machine(device)
    names = [facts["gpu"]] * bool(facts["gpu"]) + [f"{facts['cpu']}, {threads} threads", f"PyTorch {facts['torch']}"]
    return ", ".join(names)


def command_of(key: str, options: argparse.Namespace) -> str:
    """Command that repeats a row; files are named without their folders, which differ between machines."""
    words = ["python", "benchmarks/targets.py", "--only", key]
    if key != "cpu" and options.device != "cuda":
        words += ["--device", options.device]
    if key == "medium-fp32" and options.no_peer:
        words += ["--no-peer"]
    if key == "dhfr" and options.dhfr != DHFR:
        words += ["--dhfr", options.dhfr.name]
    for name in ("from_atoms", "max_atoms", "seconds") if key == "largest" else ():
        if getattr(options, name) != parser().get_default(name):
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return shlex.join(words)


def measure(key: str, session: Session, command: str) -> tuple[list[dict], str | None]:
    """Entries of one key, and the reason if it failed."""
    work: Work = ROWS[key]
    threads = torch.get_num_threads()
    figures, reason = [None] * len(work.targets), None
    try:
        figures = work.measure(session)
    except Exception as error:  # of any kind: the other rows are still measured
        reason = f"{type(error).__name__}: {error}"
    finally:
        used = torch.get_num_threads()
        torch.set_num_threads(threads)
        if session.device == "cuda":
            torch.cuda.empty_cache()
    name = machine_text("cpu" if work.on_cpu else session.device, used)
    return [entry(target, figure, name, command) for target, figure in zip(work.targets, figures, strict=True)], reason


def main() -> int:
    options = parser().parse_args()
    if options.list:
        for key, work in ROWS.items():
            for target in work.targets:
                print(
                    f"{key:12} {target.work}; target {target.target if target.target is not None else '–'} {target.unit}"
                )
        return 0
    keys = list(dict.fromkeys(options.only or ROWS))
    on_gpu = options.device == "cuda" and any(not ROWS[key].on_cpu for key in keys)
    if on_gpu and not torch.cuda.is_available():
        raise NequIPMDError("PyTorch finds no CUDA device here; measure on a machine with one, or give --only cpu")
    for path in filter(None, (options.output.parent, options.artifacts)):
        path.mkdir(parents=True, exist_ok=True)
    peer = not options.no_peer and importlib.util.find_spec("allegro") is not None
    failures = {}
    with nullcontext(options.artifacts) if options.artifacts else tempfile.TemporaryDirectory() as folder:
        session = Session(
            device=options.device if on_gpu or options.device == "cpu" else "cpu",
            gpu=torch.cuda.get_device_name() if on_gpu else "",
            folder=Path(folder).resolve(),
            dhfr=options.dhfr,
            peer=peer,
            from_atoms=options.from_atoms,
            max_atoms=options.max_atoms,
            seconds=options.seconds,
        )
        # with the peer, medium-fp32 compiles an artifact with upstream's weights
        session.compile(
            [need for key in keys if not (peer and key == "medium-fp32") for need in ROWS[key].needs], options.jobs
        )
        entries = []
        for key in keys:
            print(f"\n{key}", flush=True)
            new, reason = measure(key, session, command_of(key, options))
            if reason:
                failures[key] = reason
                print(f"{key} failed: {reason}", flush=True)
            entries += new
            write(options.output, new)
    print(f"\n{'work':92} {'peer':>10} {'ours':>10} {'target':>10}")
    for e in entries:
        peer_text, ours, target = ("–" if e[k] is None else f"{e[k]:,.4g}" for k in ("peer", "ours", "target"))
        print(f"{e['work']:92} {peer_text:>10} {ours:>10} {target:>10} {e['unit']}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(exit_status(main))
