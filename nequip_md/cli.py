"""What the command-line programs share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nequip_md.errors import NequIPMDError


def run(program: Callable[[], int | None]) -> None:
    """Run a program's body and end the process: its status, or 1 with the message of a :class:`NequIPMDError`."""
    try:
        status = program()
    except NequIPMDError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
