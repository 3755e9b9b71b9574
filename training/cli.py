"""``nequip-md-train``: train the potential that a YAML file describes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from nequip_md.cli import command_parser, exit_status


class _LinesOnStdout(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the time: a progress bar takes its place, and puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout or sys.stderr  # None: a shell has closed it
        super().emit(record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser("train", "Train an Allegro or NequIP potential.")
    parser.add_argument("config", type=Path, help="training file (YAML); docs/training.md describes its keys")
    parser.add_argument("-o", "--output", help="folder of checkpoints and logs, instead of the file's")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    begin.add_argument("--overwrite", action="store_true", help="forget the run in the output folder")
    parser.add_argument("--check", action="store_true", help="check the training file and its data, and end")
    parser.add_argument(
        "--from-nequip",
        action="store_true",
        help="the file is one of upstream's nequip-train: print a file for nequip-md-train, and end",
    )
    options = parser.parse_args(arguments)

    def program() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_LinesOnStdout()], force=True)
        if options.from_nequip:
            from nequip_md.training.from_nequip import convert

            print(convert(options.config), end="")
            return
        from nequip_md.training import check, train

        if options.check:
            check(options.config)
            print(f"{options.config}: ok")
            return
        result = train(options.config, output=options.output, resume=options.resume, overwrite=options.overwrite)
        from rich.console import Console

        from nequip_md.training.report.tables import metrics_table

        Console().print(metrics_table(result.metrics))
        print(f"best model: {result.best}")

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
