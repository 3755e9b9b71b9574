"""The command ``nequip-md-train``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from nequip_md.cli import command_parser
from nequip_md.errors import NequIPMDError, install_command
from nequip_md.files import FileKind, refuse_other
from nequip_md.interrupt import Interrupted, interruptible
from nequip_md.memory import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the potential that a YAML file describes. Returns the exit status."""
    try:
        with interruptible():
            return _main(arguments)
    except Interrupted as stop:
        print(f"nequip-md-train: {stop}", file=sys.stderr)
        return stop.status


def _main(arguments: Sequence[str] | None) -> int:
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
    from nequip_md.training.config import load_config  # after the arguments, as it imports torch

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        refuse_other(options.config, FileKind.TRAINING_FILE)
        if options.from_nequip:
            from nequip_md.training.from_nequip import convert

            print(convert(options.config), end="")
            return 0
        config = load_config(options.config)
        keep_freed_memory()
        if options.output:
            config = config.model_copy(update={"output": options.output})
        return _train(config, options)
    except (NequIPMDError, OSError) as error:
        print(f"nequip-md-train: {error}", file=sys.stderr)
        return 1


def _train(config, options: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from nequip_md.training.prepare import check
        from nequip_md.training.report import metrics_table
        from nequip_md.training.run import BEST, train
    except ModuleNotFoundError as error:
        raise NequIPMDError(f"training needs the package {error.name}: {install_command('train')}") from None
    if options.check:
        check(config)
        print(f"{options.config}: ok")
        return 0
    metrics = train(config, resume=options.resume, overwrite=options.overwrite)
    Console().print(metrics_table(metrics))
    print(f"best model: {Path(config.output) / BEST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
