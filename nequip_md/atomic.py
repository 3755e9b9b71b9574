"""Files that are replaced as a whole: their path holds the old content or the whole new one, never a part."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MINUTE = 60.0


@contextmanager
def replacing(path: str | os.PathLike, *, keep_as: Path | None = None) -> Iterator[Path]:
    """Give an empty file beside ``path`` to write to; it takes the place of ``path`` when the block ends.

    A block that raises leaves ``path`` as it was, and nothing else. A symbolic link stays, the file that it names is
    replaced. A process that is killed leaves ``.STEM.unfinished-XXXXXXXX.SUFFIX``, which the next one that writes to
    the same path removes.

    Args:
        keep_as: where the old file goes, if there is one. It is moved when the new content is safe on disk.

    Raises:
        OSError: the folder does not exist, cannot be written to or is full.
    """
    # a link may lead to another file system
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    unfinished = target.with_name(f".{target.stem}.unfinished-{secrets.token_hex(4)}{target.suffix}")
    with open(unfinished, "xb") as file:
        try:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield unfinished
            os.fsync(file.fileno())
            if keep_as is not None and target.exists():
                os.replace(target, keep_as)
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, content: bytes | memoryview, *, keep_as: Path | None = None) -> None:
    """Replace a file by one with this content. Args, Raises: as :func:`replacing`."""
    with replacing(path, keep_as=keep_as) as unfinished:
        unfinished.write_bytes(content)


def _remove_abandoned(target: Path) -> None:
    """Remove unfinished files whose writer, and so its lock, is gone."""
    for path in target.parent.glob(f"{glob.escape(f'.{target.stem}.unfinished-')}*{glob.escape(target.suffix)}"):
        with suppress(OSError), open(path, "r+b") as file:
            # one that has just been made may not be locked yet
            if time.time() - os.fstat(file.fileno()).st_mtime > _MINUTE:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
