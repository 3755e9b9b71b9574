"""A temporary folder for the code of an artifact while it is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from nequip_md.errors import NequIPMDError


class CodeFolder:
    """A private folder of this process; deleted by :meth:`delete`, or at the end of the process.

    Attributes:
        path: the folder.
    """

    def __init__(self, size: int):
        """
        Args:
            size: number of bytes that will be written to it, for messages.

        Raises:
            NequIPMDError: the folder cannot be made, or code in it cannot be executed.
        """
        self._size = size
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="nequip-md-", ignore_cleanup_errors=True)
        except OSError as error:
            self._unusable(os.environ.get("TMPDIR", "/tmp"), error.strerror or str(error))
        self.path = Path(self._folder.name)
        if os.statvfs(self.path).f_flag & os.ST_NOEXEC:
            self.delete()
            self._unusable(
                self.path.parent, "its file system is mounted noexec, which forbids to run code that lies there"
            )

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file of this name.

        Raises:
            NequIPMDError: it cannot be written, for example because there is no space left.
        """
        try:
            file = (self.path / name).open("wb")
        except OSError as error:
            self._unusable(self.path.parent, error.strerror)
        with file:
            for piece in pieces:
                try:
                    file.write(piece)
                    file.flush()
                except OSError as error:
                    self._unusable(self.path.parent, error.strerror)

    def delete(self) -> None:
        """Delete the folder and its files."""
        self._folder.cleanup()

    def _unusable(self, folder: str | Path, reason: str) -> NoReturn:
        raise NequIPMDError(
            f"the model cannot be unpacked to {folder}, the folder for temporary files: {reason}; set the environment variable"
            f" TMPDIR to a folder with {(self._size >> 20) + 1} MB of free space that allows to run code"
        )
