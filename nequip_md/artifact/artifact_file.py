"""Reading of an artifact's zip file: its metadata, and its code, which is verified while it is unpacked."""

from __future__ import annotations

import json
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from nequip_md.artifact.code_folder import CodeFolder
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, refuse_other

AGAIN = "write it again with: nequip-md-export MODEL -o OUT.pt2"
_MODEL = "data/aotinductor/model"
_MOST_OF_METADATA = 1 << 24  # bytes
_PIECE = 1 << 20  # bytes
_DAMAGE = (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OverflowError, ValueError, struct.error)
"""Exceptions of :mod:`zipfile` for a damaged file."""


class ArtifactFile:
    """An artifact's file, open for reading; a context manager.

    Attributes:
        path: the path that was given.
        size: number of bytes that :meth:`unpack` writes.
    """

    def __init__(self, path: Path):
        """
        Raises:
            NequIPMDError: the file is missing, damaged, or no artifact.
        """
        self.path = path
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise NequIPMDError(
                f"{path}: no such file ({error.strerror}); write one with: nequip-md-export MODEL -o {path.name}"
            ) from error
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise NequIPMDError(f"{path} is {what}, not a file; give the .pt2 file itself")
        foreign = f"{path} is not a compiled model (.pt2)"
        try:
            with path.open("rb") as file:
                if file.read(4) != b"PK\3\4":
                    refuse_other(path, FileKind.ARTIFACT)
                    raise NequIPMDError(f"{foreign}; write one with: nequip-md-export MODEL -o OUT.pt2")
                file.seek(max(0, path.stat().st_size - 22))
                if not file.read(4) == b"PK\5\6":
                    self._damaged("its end is missing, or something was added to it")
        except OSError as error:
            raise NequIPMDError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        with self._reading():
            self._archive = zipfile.ZipFile(path)
        try:
            self._members = {m: name for m in self._archive.infolist() if (name := _model_file(m))}
            libraries = [m for m, name in self._members.items() if name.endswith(".so")]
            if not libraries:
                refuse_other(path, FileKind.ARTIFACT)
                raise NequIPMDError(
                    f"{foreign}: it has no compiled code; write one with: nequip-md-export MODEL -o OUT.pt2"
                )
            self._library = libraries[0]
            for member in self._archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise NequIPMDError(
                        f"{path} has a compressed member, {member.filename!r}, and nequip-md-export writes none; {AGAIN}"
                    )
                if member.file_size != member.compress_size:
                    self._damaged(f"the size of {member.filename!r} is wrong")
            if sum(m.file_size for m in self._archive.infolist()) > path.stat().st_size:
                self._damaged("its directory does not fit its contents")
        except BaseException:
            self._archive.close()
            raise
        self.size = sum(m.file_size for m in self._members)

    def __enter__(self) -> ArtifactFile:
        return self

    def __exit__(self, *_) -> None:
        self._archive.close()

    def metadata(self) -> dict[str, str]:
        """The metadata that the exporter wrote, a dictionary of strings; empty if there is none.

        Raises:
            NequIPMDError: it is damaged, or no dictionary of strings.
        """
        beside = self._members[self._library].removesuffix(".so") + "_metadata.json"
        tables = {name: m for m, name in self._members.items() if name.endswith("_metadata.json")}
        if not tables:
            return {}
        member = tables.get(beside) or next(iter(tables.values()))
        if member.file_size > _MOST_OF_METADATA:
            self._damaged(f"its metadata have {member.file_size} bytes")
        text = b"".join(self._pieces(member))
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NequIPMDError(f"{self.path} has unusable metadata ({error}); {AGAIN}") from error
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise NequIPMDError(f"{self.path} has unusable metadata (they are not a table of text); {AGAIN}")
        return table

    def unpack(self, folder: CodeFolder) -> Path:
        """Write the compiled code to a folder and verify every member of the file; returns the path of the shared library.

        Raises:
            NequIPMDError: the file is damaged, or the folder is full.
        """
        for member in self._archive.infolist():
            name = self._members.get(member)
            if name is None:
                for _ in self._pieces(member):
                    pass
            else:
                folder.write(name, self._pieces(member))
        return folder.path / self._members[self._library]

    def _pieces(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's bytes; the checksum is verified at the end."""
        with self._reading(), self._archive.open(member) as source:
            while piece := source.read(_PIECE):
                yield piece

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            self._damaged(str(error))
        except OSError as error:
            raise NequIPMDError(
                f"{self.path} cannot be read ({error.strerror}); copy it again, or to another file system"
            ) from error

    def _damaged(self, reason: str) -> NoReturn:
        raise NequIPMDError(f"{self.path} is damaged ({reason}); copy it again from where it is whole, or {AGAIN}")


def _model_file(member: zipfile.ZipInfo) -> str:
    """File name of a member that belongs to the compiled model, without the zip file's folders; empty for other members."""
    _, _, rest = member.filename.partition("/")
    folder, _, name = rest.rpartition("/")
    return name if folder == _MODEL else ""
