"""Bounds on what reading a file may cost: a small file must not fill the memory, or take for ever."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nequip_md.errors import NequIPMDError

_DEPTH = 50
_ITEMS = 100_000
_CHARACTERS = 10_000_000
_SLACK = 1_000_000
COPY_AGAIN = "Copy it again from where it was written."


def shortened(text: str) -> str:
    """At most 300 characters of what a file says, for a message."""
    return text if len(text) <= 300 else f"{text[:300]} ..."


def brief(error: Exception) -> str:
    """Type and message of an error, for one line."""
    return shortened(f"{type(error).__name__}: {error}")


def plain_data(value: Any) -> Any:
    """A copy of nested dictionaries and lists in which nothing is shared; other objects are kept as they are.

    Raises:
        ValueError: nested more than 50 deep (or in itself), or more than 100,000 items or 10 million characters in all when
            written out, which a file of a few lines can be by naming one part many times.
    """
    items = characters = 0

    def copy(part: Any, depth: int) -> Any:
        nonlocal items, characters
        items += 1
        characters += len(part) if isinstance(part, (str, bytes)) else 0
        if depth > _DEPTH or items > _ITEMS or characters > _CHARACTERS:
            raise ValueError(
                f"its options are nested more than {_DEPTH} deep, or more than {_ITEMS} items or {_CHARACTERS} characters"
            )
        if isinstance(part, Mapping):
            return {copy(key, depth + 1): copy(item, depth + 1) for key, item in part.items()}
        if isinstance(part, (list, tuple, set, frozenset)):
            return [copy(item, depth + 1) for item in part]
        return part

    return copy(value, 0)


def check_zip(path: Path) -> list[str]:
    """Read every member of a zip file once. Returns their names.

    Raises:
        NequIPMDError: a member does not have its checksum, or the members are larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(member.file_size for member in archive.infolist())
            spoilt = None if unpacked > path.stat().st_size else archive.testzip()
    # a damaged directory can ask for any compression, encryption or place in the file
    except Exception as error:
        raise NequIPMDError(f"checkpoint {path} is damaged or cut short ({brief(error)}). {COPY_AGAIN}") from error
    if unpacked > path.stat().st_size:
        raise NequIPMDError(
            f"checkpoint {path} would unpack to {unpacked} bytes, more than the file has; neither nequip-train nor "
            f"nequip-package compresses what it writes. {COPY_AGAIN}"
        )
    if spoilt is not None:
        raise NequIPMDError(f"checkpoint {path} is damaged: the checksum of {spoilt!r} in it is wrong. {COPY_AGAIN}")
    return names


def check_size(tensors: Iterable[Tensor], path: Path) -> None:
    """Refuse tensors that are larger than the file which they came from: views that repeat their numbers.

    Raises:
        NequIPMDError: as above, or a tensor that is not a plain array.
    """
    size = 0
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise NequIPMDError(
                f"checkpoint {path} holds a tensor that is not a plain array; nequip-train writes no such file"
            )
        size += math.prod(tensor.shape) * tensor.element_size()
    stored = path.stat().st_size
    if size > 2 * stored + _SLACK:
        raise NequIPMDError(
            f"checkpoint {path} names tensors of {size} bytes, but is only {stored} bytes long; it is damaged"
        )


class AtMost(TorchFunctionMode):
    """Refuse to allocate more parameters than a file can fill, before the memory is taken.

    Args:
        numbers: that the file holds; as many again are tolerated, so that smaller differences are told by name.
    """

    def __init__(self, numbers: int):
        super().__init__()
        self._numbers = numbers
        self._left = 2 * numbers + _SLACK

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # every parameter of a model begins as one of these
        if func in (torch.empty, torch.randn):
            size = args or (kwargs or {}).get("size", ())
            self._left -= math.prod(size[0] if size and isinstance(size[0], (tuple, list)) else size)
            if self._left < 0:
                raise NequIPMDError(
                    f"the configuration describes a model of far more than the {self._numbers} numbers that the file holds"
                )
        return func(*args, **(kwargs or {}))
