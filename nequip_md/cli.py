"""Helpers of all command-line programs. Nothing here imports torch, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from nequip_md import __version__
from nequip_md.errors import NequIPMDError
from nequip_md.interrupt import Interrupted, interruptible


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Parser of the command ``nequip-md NAME``, which is also installed as ``nequip-md-NAME``; it knows ``--version``."""
    umbrella = f"nequip-md {name}"
    # the umbrella command puts its own name there, so that usage and errors repeat what was typed
    prog = umbrella if sys.argv[0] == umbrella else f"nequip-md-{name}"
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_version(parser)
    return parser


def add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"nequip-md {__version__}")


def run(program: Callable[[], int | None]) -> None:
    """Run a program's body and end the process: its status, or 1 with the message of a :class:`NequIPMDError`.

    Ctrl-C and SIGTERM, which schedulers send at a time limit, end the body with an exception, so that it cleans up; the status
    is 130 or 143.
    """
    try:
        with interruptible():
            status = program()
    except NequIPMDError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except Interrupted as stop:
        print(f"ended by {stop.signal.name}", file=sys.stderr)
        status = stop.status
    sys.exit(status or 0)
