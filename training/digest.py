"""Digests of data, by which a resumed run recognises its own data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

if TYPE_CHECKING:
    from nequip_md.training.data import Sample

_NO_LABELS = {"graph", "volume", "index"}
"""Fields that follow from the structures and their order, some with rounding errors that differ between machines."""


def data_digest(frames: Sequence[Atoms], samples: Sequence[Sample]) -> dict[str, str]:
    """SHA-256 of a data set, one for its structures and one for each label, all in the order of the frames.

    Args:
        frames: the structures: numbers, positions, cells and periodic directions count.
        samples: their labels; every field of :class:`~nequip_md.training.data.Sample` that is a label counts.

    Returns:
        Hexadecimal digests by ``structures``, ``energy``, ``forces``, ...
    """
    digests = {"structures": hashlib.sha256()}
    for atoms in frames:
        for array in (atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, atoms.pbc):
            _add(digests["structures"], array)
    for sample in samples:
        for name in {f.name for f in fields(sample)} - _NO_LABELS:
            tensor = getattr(sample, name)
            # a stress may come from a virial and a volume, whose last bits are another machine's own
            array = (tensor.float() if name == "stress" else tensor).numpy()
            _add(digests.setdefault(name, hashlib.sha256()), array)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _add(digest, array: np.ndarray) -> None:
    digest.update(repr((array.dtype.str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array))
