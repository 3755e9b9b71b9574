"""Checkpoints: the native format, and readers for those of upstream ``nequip`` and ``nequip-allegro``.

:func:`load` takes every kind and looks at the content, not at the name. No kind executes code that a file stores,
unless the caller allows it; ``docs/checkpoints.md`` says when that is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nequip_md.checkpoint.limits import COPY_AGAIN, brief
from nequip_md.checkpoint.native import CheckpointInfo, load_native, read_native_info
from nequip_md.checkpoint.native import save_native as save
from nequip_md.checkpoint.upstream import convert, read_upstream, upstream_info
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, refuse_other
from nequip_md.model.potential import Potential
from nequip_md.public_models import local_file

__all__ = ["CheckpointInfo", "checkpoint_sha256", "load", "read_info", "save"]


def load(path: str | os.PathLike, *, allow_pickle: bool = False) -> Potential:
    """The model of a checkpoint, in evaluation mode on the CPU.

    Args:
        path: a native checkpoint, a Lightning ``.ckpt`` of ``nequip-train``, a packaged ``.nequip.zip``, or the name of a
            model on https://www.nequip.net/, ``nequip.net:GROUP/MODEL:VERSION``, which is downloaded once. Averaged (EMA)
            weights are used where an upstream checkpoint has them.
        allow_pickle: permit a ``.ckpt`` that holds more than tensors and plain data; reading it executes code stored
            in it.

    Raises:
        NequIPMDError: missing or damaged file, unknown kind, newer format, weights that do not fit, an upstream option that is
            not implemented, by name, or a public model that cannot be downloaded.
    """
    with _damage_named(path):
        path, kind = _identify(path)
        return load_native(path) if kind == "native" else convert(read_upstream(path, allow_pickle))


def read_info(path: str | os.PathLike, *, allow_pickle: bool = False) -> CheckpointInfo:
    """Configuration and training record of a checkpoint of any kind, without building the model.

    Args, Raises: as :func:`load`.
    """
    with _damage_named(path):
        path, kind = _identify(path)
        return read_native_info(path) if kind == "native" else upstream_info(read_upstream(path, allow_pickle))


def checkpoint_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        NequIPMDError: no such file.
    """
    with _damage_named(path), open(_existing(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _damage_named(path: str | os.PathLike) -> Iterator[None]:
    """Errors of any kind, which damaged content can raise anywhere, as one that names the file."""
    try:
        yield
    except NequIPMDError:
        raise
    except OSError as error:
        raise NequIPMDError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise NequIPMDError(
            f"checkpoint {path} cannot be read ({brief(error)}). It is damaged or of an unknown form. {COPY_AGAIN}"
        ) from error


def _existing(path: str | os.PathLike) -> Path:
    path = local_file(path)
    if path.is_dir():
        raise NequIPMDError(f"checkpoint {path} is a directory; give the file inside it")
    if path.exists() and not path.is_file():
        raise NequIPMDError(f"checkpoint {path} is a device or pipe; give a file")
    if not path.is_file():
        raise NequIPMDError(f"checkpoint {path} does not exist; check the path")
    return path


def _identify(path: str | os.PathLike) -> tuple[Path, str]:
    """The kind of a file by its first bytes: safetensors, or a PyTorch zip file."""
    path = _existing(path)
    refuse_other(path, FileKind.CHECKPOINT)
    with open(path, "rb") as file:
        start = file.read(9)
    # first, because the eight bytes before it are a length that can be anything
    if start[8:] == b"{":
        return path, "native"
    if start[:4] == b"PK\x03\x04":
        return path, "upstream"
    raise NequIPMDError(
        f"{path} is not a checkpoint: neither a native one (safetensors) nor an upstream .ckpt or .nequip.zip. "
        "Compiled .pt2 artifacts are no checkpoints; they go to the engines as they are."
    )
