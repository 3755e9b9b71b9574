"""What the command-line programs share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from nequip_md.errors import NequIPMDError


class _Terminated(BaseException):
    """The process was asked to end."""


def _terminate(*_) -> None:
    raise _Terminated


def run(program: Callable[[], int | None]) -> None:
    """Run a program's body and end the process: its status, or 1 with the message of a :class:`NequIPMDError`.

    Ctrl-C and SIGTERM, which schedulers send at a time limit, end the body with an exception, so that it cleans up; the status
    is 130 or 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = program()
    except NequIPMDError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except _Terminated:
        print("ended by SIGTERM", file=sys.stderr)
        status = 143
    sys.exit(status or 0)
