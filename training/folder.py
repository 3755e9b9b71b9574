"""The output folder of a run: names of its files, and a lock that allows one run at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nequip_md.errors import NequIPMDError

log = logging.getLogger(__name__)

BEST = "best.nqmd"
"""The best model so far: a native checkpoint."""
LAST = "last.ckpt"
"""The last state, from which ``--resume`` continues: after an epoch, or within one that was interrupted."""
PREVIOUS = "previous.ckpt"
"""The state before that, which is used if ``last.ckpt`` is damaged."""
DIVERGED = "diverged.extxyz"
"""Frames of the batch with which training diverged."""
REPORT = "report.json"
"""Statistics of the data and errors of the best model."""
REPORT_PAGE = "report.html"
"""The same and more for people, with pictures."""
PLOTS = "plots"
"""Folder of the pictures that are in the page."""
_RESULTS = (LAST, PREVIOUS, BEST, REPORT)
_LOCK = ".lock"


def holds_run(folder: Path) -> bool:
    """Whether a folder has results of a run, which must not be overwritten by mistake."""
    return any((folder / name).exists() for name in _RESULTS)


def forget_run(folder: Path) -> None:
    """Remove the results of a run; its logs stay."""
    for name in (*_RESULTS, REPORT_PAGE, DIVERGED):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create the output folder and lock it for this process; the system removes the lock when the process ends in any way.

    Raises:
        NequIPMDError: the folder cannot be made or written to, or another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK, "a+", encoding="utf-8")
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise NequIPMDError(f"cannot write to the output folder {folder}: {reason}; give another --output") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                raise NequIPMDError(
                    f"another run is writing to {folder} ({file.read().strip() or 'unknown process'});"
                    " wait for it, end it, or give another --output"
                ) from None
            log.warning(
                "the file system of %s has no locks (%s): see to it that no other run writes there",
                folder,
                error.strerror,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            for part in folder.glob(".*.unfinished-*"):  # of a run that was killed while it wrote
                part.unlink()
        yield
