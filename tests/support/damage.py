"""Damaged artifacts for tests of refusals."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def _member(content: bytes, end: str) -> tuple[int, int]:
    """Offset and size of the first member whose name ends in ``end``."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith(end))
    header = content[member.header_offset : member.header_offset + 30]
    start = (
        member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    )
    return start, member.file_size


def _bit(end: str, part: float):
    def damage(content: bytes) -> bytes:
        start, size = _member(content, end)
        return _flipped(content, start + int(part * size))

    return damage


def _hole(content: bytes) -> bytes:
    start, size = _member(content, ".so")
    at = next(at for at in range(start + size // 2, start + size, 4096) if any(content[at : at + 4096]))
    return content[:at] + bytes(4096) + content[at + 4096 :]


DAMAGES = {
    "a bit of the code": _bit(".so", 0.2),
    "another bit of the code": _bit(".so", 0.55),
    "a bit near the end of the code": _bit(".so", 0.95),
    "a bit of the metadata": _bit("wrapper_metadata.json", 0.5),
    "a bit of a source": _bit("wrapper.cpp", 0.5),
    "a bit of a member beside the model": _bit("serialization_id", 0.5),
    "a page of zeros": _hole,
    "a bit of a name": lambda content: _flipped(content, content.rindex(b"wrapper.so") + 3),
    "a bit of a checksum": lambda content: _flipped(content, content.rindex(b"PK\1\2") + 16),
    "a bit of a size": lambda content: _flipped(content, content.rindex(b"PK\1\2") + 24),
    "the last byte missing": lambda content: content[:-1],
    "half of it missing": lambda content: content[: len(content) // 2],
    "bytes added": lambda content: content + b"\0" * 100,
}


def damaged(source: Path, target: Path, case: str) -> Path:
    """Copy an artifact with one of :data:`DAMAGES`."""
    target.write_bytes(DAMAGES[case](source.read_bytes()))
    return target


METADATA = {
    "a list": "[1, 2]",
    "a number as value": '{"format_version": 1}',
    "a table as value": '{"format_version": {"a": "b"}}',
    "no JSON": "format_version = 1",
    "deep": "[" * 100_000 + "]" * 100_000,
    "cut": '{"format_version": "1',
}
"""Texts in place of the metadata that loaders must refuse."""


def rewritten(
    source: Path,
    target: Path,
    *,
    metadata: str | None = None,
    library: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Copy an artifact with other contents and valid checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for item in old.infolist():
            content = old.read(item)
            if metadata is not None and item.filename.endswith("_metadata.json"):
                content = metadata.encode()
            if library is not None and item.filename.endswith(".so"):
                content = library
            new.writestr(item.filename, content)
    return target
