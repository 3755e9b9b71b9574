"""What all commands share: the parser, and how a command ends. Nothing here imports torch, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback
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


def exit_status(program: Callable[[], int | None]) -> int:
    """Run a command's body and give the status that its process shall end with; errors are printed to stderr.

    ======  ==============================================================================================
    status  when
    ======  ==============================================================================================
    0       success; what the body returns, if that is a number (1: a check has failed)
    1       ``error: ...``: bad input (:class:`NequIPMDError`), a file that the system refuses, no memory left
    1       an exception of any other kind, which is a fault of the program: traceback, and how to report it
    2       wrong arguments: argparse ends the process before this function is called
    130     Ctrl-C, so that a shell's loop ends as well; 143: SIGTERM, which schedulers send at a time limit
    141     whoever reads the output has closed it (``nequip-md info | head -1``)
    ======  ==============================================================================================

    Ctrl-C and SIGTERM end the body with the exception :class:`Interrupted`, so that it cleans up.
    """
    try:
        with interruptible():
            status = program() or 0
            if sys.stdout is not None:  # None: a shell has closed it (>&-)
                sys.stdout.flush()  # the exception of a full disk shall come here and not when the process ends
            return status
    except Interrupted as stop:
        return _ended(str(stop), stop.status)
    except NequIPMDError as error:
        return _ended(f"error: {error}")
    except OSError as error:
        closed = _output_is_closed()
        if closed and isinstance(error, BrokenPipeError):
            return 141
        place = f"{error.filename}: " if error.filename is not None else ""
        return _ended(f"error: {place}{error.strerror or error}")
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is PyTorch's
            return _ended(f"error: out of memory; try fewer atoms or smaller batches. {error}".strip())
        traceback.print_exc()
        return _ended(
            f"error: this {type(error).__name__} is a fault of nequip-md, not of your input. Please report it to the "
            "developers of nequip-md with the text above, the command and the output of: nequip-md info"
        )


def _ended(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr)
    return status


def _output_is_closed() -> bool:
    """Whether standard output takes nothing; then Python shall not try again, and complain, when it ends."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):  # no file of the system: a notebook has such an output, or there is none
        return False
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return True
    # without a buffer (PYTHONUNBUFFERED) there was nothing to flush
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
