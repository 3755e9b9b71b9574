"""The kind of a file, by its content, and what to do with it: shared by error messages and ``nequip-md info``.

Only names and the first bytes are looked at. Nothing is unpickled or executed, and no file is read whole.
"""

from __future__ import annotations

import re
import shlex
import zipfile
from enum import StrEnum
from pathlib import Path

from nequip_md.errors import NequIPMDError

TRAINING_STATE_KEY = "nequip_md"
"""Entry of a training state (``last.ckpt``) that holds what this package's trainer keeps."""

_PEEK = 1 << 20
"""Bytes of a text file, of a header or of an archive's member that are looked at, at most."""


class FileKind(StrEnum):
    """Kinds of file that users of potentials have, each in words for messages."""

    ARTIFACT = "a compiled model of nequip-md"
    OTHER_ARTIFACT = "a compiled model of another program"
    CHECKPOINT = "a checkpoint of nequip-md"
    TRAINING_STATE = "the state of a training run of nequip-md"
    UPSTREAM_CHECKPOINT = "a checkpoint of upstream's nequip-train"
    UPSTREAM_PACKAGE = "a packaged model of upstream's nequip-package"
    TRAINING_FILE = "a training file of nequip-md"
    UPSTREAM_TRAINING_FILE = "a training file of upstream's nequip-train"
    FOLDER = "a directory"
    NOT_A_FILE = "not a regular file"
    UNKNOWN = "a file of unknown kind"


CHECKPOINTS = (FileKind.CHECKPOINT, FileKind.UPSTREAM_CHECKPOINT, FileKind.UPSTREAM_PACKAGE)
"""The kinds that ``nequip-md-export`` compiles."""


def file_kind(path: str | Path) -> FileKind:
    """The kind of what lies at ``path``; ``UNKNOWN`` also where it is damaged, cannot be read or does not exist."""
    path = Path(path)
    if path.is_dir():
        return FileKind.FOLDER
    if not path.is_file():
        return FileKind.NOT_A_FILE if path.exists() else FileKind.UNKNOWN
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _archive_kind(archive)
        with open(path, "rb") as file:
            start = file.read(_PEEK)
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return FileKind.UNKNOWN
    # a safetensors file: the eight bytes before the header are its length
    if start[8:9] == b"{":
        return FileKind.CHECKPOINT if b'"__metadata__"' in start and b'"nequip_md"' in start else FileKind.UNKNOWN
    return _text_kind(start)


def _archive_kind(archive: zipfile.ZipFile) -> FileKind:
    members = {name.partition("/")[2]: name for name in archive.namelist()}

    def peek(name: str) -> bytes:
        with archive.open(name) as file:
            return file.read(_PEEK)

    if "model/eager_model.pkl" in members or "model/package_metadata.txt" in members:
        return FileKind.UPSTREAM_PACKAGE
    compiled = [name for member, name in members.items() if member.startswith("data/aotinductor/")]
    tables = [name for name in compiled if name.endswith("_metadata.json")]
    if any(b'"format_version"' in peek(name) for name in tables):
        return FileKind.ARTIFACT
    torchscript = "constants.pkl" in members and any(member.startswith("code/") for member in members)
    if compiled or torchscript:
        return FileKind.OTHER_ARTIFACT
    if "data.pkl" in members:
        entries = peek(members["data.pkl"])
        # a pickle holds the keys of its dictionaries as plain text
        if b"pytorch-lightning_version" in entries:
            if b"hyper_parameters" in entries and b"info_dict" in entries:
                return FileKind.UPSTREAM_CHECKPOINT
            if TRAINING_STATE_KEY.encode() in entries:
                return FileKind.TRAINING_STATE
    return FileKind.UNKNOWN


def _text_kind(start: bytes) -> FileKind:
    def has(key: str) -> bool:
        return re.search(rb"^%s[ \t]*:" % key.encode(), start, re.MULTILINE) is not None

    if has("training_module"):
        return FileKind.UPSTREAM_TRAINING_FILE
    return FileKind.TRAINING_FILE if has("model") and has("data") else FileKind.UNKNOWN


_READABLE = {
    FileKind.ARTIFACT: (FileKind.ARTIFACT,),
    FileKind.CHECKPOINT: CHECKPOINTS,
    # upstream's training files are left to their reader, which knows the equivalent keys
    FileKind.TRAINING_FILE: (FileKind.TRAINING_FILE, FileKind.UPSTREAM_TRAINING_FILE),
}
_WANTED = {
    FileKind.ARTIFACT: "a compiled model (.pt2)",
    FileKind.CHECKPOINT: "a checkpoint",
    FileKind.TRAINING_FILE: "a training file (YAML)",
}


def refuse_other(path: str | Path, wanted: FileKind) -> None:
    """Stop where a file is known to be something else than what is wanted; unknown files are left to their reader.

    Args:
        wanted: ``ARTIFACT``, ``TRAINING_FILE``, or ``CHECKPOINT``, which stands for all of :data:`CHECKPOINTS`.

    Raises:
        NequIPMDError: with what the file is, and what turns it into what is wanted.
    """
    path, kind = Path(path), file_kind(path)
    if kind is not FileKind.UNKNOWN and kind not in _READABLE[wanted]:
        raise NequIPMDError(f"{path} is {kind}, not {_WANTED[wanted]}; {_remedy(path, kind, wanted)}")


def _remedy(path: Path, kind: FileKind, wanted: FileKind) -> str:
    best = path.parent / "best.nqmd"
    if not best.is_file():
        best = Path("best.nqmd")
    match kind:
        case FileKind.FOLDER:
            return "give the file inside it"
        case FileKind.NOT_A_FILE:
            return "give the path of a file"
        case _ if wanted is FileKind.TRAINING_FILE:
            return "docs/training.md describes training files"
        case FileKind.OTHER_ARTIFACT:
            return "give the checkpoint that it was made from" + (
                ", compiled by nequip-md-export" if wanted is FileKind.ARTIFACT else ""
            )
        case FileKind.TRAINING_FILE:
            return f"train the model first: nequip-md-train {shlex.quote(str(path))}; its best.nqmd is the checkpoint"
        case FileKind.UPSTREAM_TRAINING_FILE:
            return "train the model first with upstream's nequip-train; its .ckpt files are checkpoints"
        case FileKind.TRAINING_STATE if wanted is FileKind.CHECKPOINT:
            return f"give the best model of that run: {best}"
        case FileKind.TRAINING_STATE:
            return f"compile the best model of that run: {export_command(best)}"
        case FileKind.ARTIFACT:
            return "it is compiled already, and LAMMPS and ASE load it as it is"
    return f"compile it first: {export_command(path)}"


def export_command(checkpoint: Path) -> str:
    """The command line that compiles a checkpoint to a file beside it."""
    output = checkpoint.with_name(checkpoint.name.removesuffix(".zip").removesuffix(".nequip")).with_suffix(".pt2")
    return f"nequip-md-export {shlex.quote(str(checkpoint))} -o {shlex.quote(str(output))}"
