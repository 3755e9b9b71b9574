"""``nequip-md-data``: convert, check, describe and split data files."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nequip_md.cli import command_parser, exit_status
from nequip_md.errors import NequIPMDError, install_command

if TYPE_CHECKING:
    from nequip_md.training.data.labels import Labels
    from nequip_md.training.data.samples import GraphOptions

_Frame = TypeVar("_Frame")

_MOST_LINES = 50
_MOST_WORKERS = 8
"""Processes by default; one writer does not keep up with many more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser("data", "Convert, check, describe and split data files; docs/data.md has the formats.")
    commands = parser.add_subparsers(dest="command", required=True)

    convert = commands.add_parser("convert", help="write a store of graphs (.graphs) or extended XYZ (.extxyz)")
    convert.add_argument("files", nargs="+", metavar="FILE")
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="OUT.graphs or OUT.extxyz")
    _add_train_file(convert, "types, cutoffs, names and units of labels are those of this training file")
    convert.add_argument("--cutoff", type=float, metavar="Å", help="without a training file: cutoff of all pairs")
    convert.add_argument("--types", nargs="+", metavar="X", help="without a training file: the model's type_names")
    convert.add_argument("--max-force", type=float, metavar="F", help="leave frames with a larger force out, eV/Å")
    convert.add_argument("--charge", type=float, metavar="Q", help="take frames of this charge (SPICE)")
    convert.add_argument("--elements", nargs="+", metavar="X", help="take frames of these elements alone")
    convert.add_argument("--within", type=float, metavar="Å", help="take frames in which each atom has another so near")
    convert.add_argument("--fragments", choices=["single"], help="take frames of one molecule alone (SPICE)")
    text = f"processes that make a store (default: as many as there are cores, at most {_MOST_WORKERS})"
    convert.add_argument("--workers", type=_workers, metavar="N", help=text)

    convert.add_argument(
        "--weight", type=float, metavar="W", help="multiply the weights of the frames in the loss (extended XYZ)"
    )
    convert.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=["energy", "forces", "stress"],
        metavar="LABEL",
        help="leave these labels out: energy, forces, stress (extended XYZ)",
    )

    check = commands.add_parser("check", help="the labels of files and their suspicious frames; status 1 if any")
    check.add_argument("files", nargs="+", metavar="FILE")
    _add_train_file(check, "names and units of labels are those of this training file")
    check.add_argument("--all", action="store_true", help=f"list all suspicious frames, not the first {_MOST_LINES}")

    summary = commands.add_parser("summary", help="numbers of atoms, energies, forces, distances")
    summary.add_argument("files", nargs="+", metavar="FILE")
    _add_train_file(summary, "names and units of labels are those of this training file")
    summary.add_argument("--plot", type=Path, metavar="FILE", help="draw them to this picture (.png, .pdf, .svg)")
    summary.add_argument("--reach", type=float, default=5.0, metavar="Å", help="distances up to here (default: 5)")

    split = commands.add_parser("split", help="draw train, validation and test frames of a file at random")
    split.add_argument("file", metavar="FILE")
    split.add_argument("--fractions", type=float, nargs="+", default=[0.9, 0.05, 0.05], metavar="X")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the new files")
    options = parser.parse_args(arguments)
    if options.command == "split" and not 1 <= len(options.fractions) <= 3:
        split.error(
            f"--fractions are those of one to three parts (train, validation, test), not {len(options.fractions)}"
        )

    def program() -> int | None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        programs = {"convert": _convert, "check": _check, "summary": _summary, "split": _split}
        try:
            return programs[options.command](options)
        except ModuleNotFoundError as error:
            raise NequIPMDError(f"nequip-md data needs the package {error.name}: {install_command('train')}") from None

    return exit_status(program)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes; give 1 or more")
    return int(text)


def _add_train_file(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--train-file", type=Path, metavar="TRAIN.yaml", help=text)


def _labels_and_options(options: argparse.Namespace) -> tuple[Labels, GraphOptions | None]:
    """Names and units of labels, and what graphs are made for if that is known."""
    from nequip_md.training.data.labels import Labels

    if options.train_file is None:
        return Labels(weight="config_weight"), None
    from nequip_md.training.config import load_config
    from nequip_md.training.data.samples import GraphOptions

    config = load_config(options.train_file)
    return Labels.from_config(config.data), GraphOptions.from_potential(config.potential())


def _convert(options: argparse.Namespace) -> None:
    from nequip_md.training.data.filters import Filter
    from nequip_md.training.data.label_counts import log_label_table

    to_store = options.output.suffix == ".graphs"
    if not to_store and options.output.suffix not in (".extxyz", ".xyz"):
        raise NequIPMDError(
            f"{options.output} is named neither .graphs (a store, ready for training) nor .extxyz (extended XYZ)"
        )
    if options.weight is not None and not 0 <= options.weight < math.inf:
        raise NequIPMDError(f"--weight is {options.weight}; it must be a number that is not negative")
    if to_store and (options.weight is not None or options.without):
        raise NequIPMDError(
            "--weight and --without write extended XYZ; give -o OUT.extxyz, and make the store of that file"
        )
    if options.workers is not None and not to_store:
        raise NequIPMDError("--workers is for stores (-o OUT.graphs); extended XYZ is written by one process")
    if options.within is not None and not 0 < options.within < math.inf:
        raise NequIPMDError(f"--within is {options.within}; it must be a distance above 0 (angstrom)")
    labels, graph_options = _labels_and_options(options)
    if to_store:
        graph_options = _graph_options(options, graph_options)
    refuse = Filter(
        max_force=options.max_force,
        charge=options.charge,
        elements=None if options.elements is None else frozenset(options.elements),
        single_fragment=options.fragments == "single",
        within=options.within,
    )
    if to_store:
        from nequip_md.training.data.store_writer import write_store

        workers = options.workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
        more = {"refuse": refuse, "workers": workers, "progress": partial(_progress, size=len)}
        counts = write_store(options.output, options.files, labels, graph_options, **more)
    else:
        from nequip_md.training.data.files import write_extxyz

        counts = write_extxyz(
            options.output,
            options.files,
            labels,
            refuse=refuse,
            progress=_progress,
            weight=options.weight,
            without=options.without,
        )
    log_label_table(counts)
    left_out = sum((Counter(c.left_out) for c in counts), Counter())
    for reason, number in sorted(left_out.items()):
        print(f"left out: {number} frames with {reason}")
    print(f"{options.output}: {sum(c.frames for c in counts)} frames, {options.output.stat().st_size / 1e6:.1f} MB")


def _graph_options(options: argparse.Namespace, of_file: GraphOptions | None) -> GraphOptions:
    from nequip_md.graph.build import cutoff_matrix
    from nequip_md.training.data.samples import GraphOptions

    given = [name for name in ("cutoff", "types") if getattr(options, name) is not None]
    if of_file is not None:
        if given:
            raise NequIPMDError(f"--train-file says types and cutoffs; leave --{' and --'.join(given)} out")
        return of_file
    if len(given) < 2:
        raise NequIPMDError("a store needs types and cutoffs of a model: give --train-file, or --cutoff and --types")
    cutoff_matrix(options.cutoff)
    return GraphOptions(tuple(options.types), ((options.cutoff,) * len(options.types),) * len(options.types))


def _check(options: argparse.Namespace) -> int:
    from nequip_md.training.data.checks import check_files
    from nequip_md.training.data.label_counts import log_label_table

    counts, found = check_files(options.files, _labels_and_options(options)[0])
    log_label_table(counts)
    shown = found if options.all else found[:_MOST_LINES]
    for suspicion in shown:
        print(f"suspicious: {suspicion}")
    if len(found) > len(shown):
        print(f"and {len(found) - len(shown)} more (--all)")
    print(f"{len(found)} suspicions in {sum(c.frames for c in counts)} frames" if found else "nothing suspicious")
    return 1 if found else 0


def _summary(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nequip_md.training.data.samples import labelled_frames
    from nequip_md.training.data.summary import Summary

    labels, _ = _labels_and_options(options)
    summary = Summary(options.reach)
    for _, atoms, found in _progress(f for path in options.files for f in labelled_frames(path, labels)):
        summary.add(atoms, found)
    Console().print(summary.table)
    if options.plot is not None:
        summary.plot(options.plot)
        print(options.plot)


def _split(options: argparse.Namespace) -> None:
    from nequip_md.training.data.files import split_file

    for path, frames in split_file(options.file, options.fractions, options.seed, options.output).items():
        print(f"{path}: {frames} frames")


def _progress(frames: Iterable[_Frame], size: Callable[[_Frame], int] = lambda frame: 1) -> Iterator[_Frame]:
    """The frames, counted on a terminal while they go by; how many there will be is not known.

    Args:
        size: number of frames in an item.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} frames"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        for frame in frames:
            yield frame
            bar.advance(task, size(frame))


if __name__ == "__main__":
    sys.exit(main())
