"""What the command-line programs share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nequip_md.errors import NequIPMDError
from nequip_md.interrupt import Interrupted, interruptible


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
