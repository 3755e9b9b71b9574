"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview, *, keep_as: Path | None = None) -> None:
    """Write a file so that its path holds the old content or the whole new one at any time, never a part.

    The new content is written beside the path, whatever ``TMPDIR`` is: a rename is atomic within one file system only.

    Args:
        keep_as: where the old file goes, if there is one. It is moved when the new content is safe on disk.

    Raises:
        OSError: no space, no permission; the old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            os.replace(path, keep_as)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
