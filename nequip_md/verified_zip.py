"""Zip files that are read by a program which compares no checksums, as PyTorch's reader is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path


def verified_copy(path: Path) -> io.BytesIO:
    """The archive made again in memory, of members with right checksums.

    More than the checksums matters: one wrong bit in the directory of an archive (an attribute that makes a member a
    folder) has ``torch.load`` return memory that was never filled. The copy has a directory of its own.

    Raises:
        OSError: the file cannot be read.
        Exception: whatever :mod:`zipfile` meets in a damaged file, :class:`zipfile.BadZipFile` for a wrong checksum.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, "w") as copy:
        for member in source.infolist():
            copy.writestr(member.filename, source.read(member))
    content.seek(0)
    return content
