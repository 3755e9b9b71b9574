"""Digests of data, by which a resumed run recognises its own data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

if TYPE_CHECKING:
    from nequip_md.training.data.samples import Sample

_NO_LABELS = {"graph", "volume", "index"}
"""Fields that follow from the structures and their order, some with rounding errors that differ between machines."""


def data_digest(frames: Sequence[Atoms], samples: Sequence[Sample]) -> dict[str, str]:
    """SHA-256 of a data set, one for its structures and one for each label, all in the order of the frames.

    Args:
        frames: the structures: numbers, positions, cells and periodic directions count.
        samples: their labels; every field of :class:`~nequip_md.training.data.samples.Sample` that is a label counts.

    Returns:
        Hexadecimal digests by ``structures``, ``energy``, ``forces``, ...
    """
    digest = DataDigest()
    for atoms, sample in zip(frames, samples, strict=True):
        digest.add(atoms, sample)
    return digest.values


class DataDigest:
    """The digests of :func:`data_digest`, of one frame after the other."""

    def __init__(self):
        self._digests = {"structures": hashlib.sha256()}

    def add(self, atoms: Atoms, sample: Sample) -> None:
        self.add_contents(digested(atoms, sample))

    def add_contents(self, contents: dict[str, bytes]) -> None:
        """Add what :func:`digested` has given for some frames, joined."""
        for name, content in contents.items():
            self._digests.setdefault(name, hashlib.sha256()).update(content)

    @property
    def values(self) -> dict[str, str]:
        return {name: digest.hexdigest() for name, digest in self._digests.items()}


def digested(atoms: Atoms, sample: Sample) -> dict[str, bytes]:
    """The bytes that the digests of a frame are computed of, by the digests' names."""
    structure = (atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, atoms.pbc)
    contents = {"structures": b"".join(map(_content, structure))}
    for name in (f.name for f in fields(sample) if f.name not in _NO_LABELS):
        tensor = getattr(sample, name)
        # a stress may come from a virial and a volume, whose last bits are another machine's own
        contents[name] = _content((tensor.float() if name == "stress" else tensor).numpy())
    return contents


def combined_digest(parts: Sequence[dict[str, str]], rows: np.ndarray) -> dict[str, str]:
    """Digests of some frames of several sources.

    Args:
        parts: digests of each source.
        rows: the frames, counted through all sources, int64 [n].
    """
    combined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        digest = hashlib.sha256("".join(part.get(name, "") for part in parts).encode())
        digest.update(_content(rows.astype(np.int64)))
        combined[name] = digest.hexdigest()
    return combined


def _content(array: np.ndarray) -> bytes:
    return repr((array.dtype.str, array.shape)).encode() + array.tobytes()
