"""Extended XYZ, parsed by ASE a frame at a time; ASE's own reader goes through the whole file first."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TextIO

from ase import Atoms
from ase.io.extxyz import read_xyz
from ase.io.formats import open_with_compression

from nequip_md.training.data.units import Units


def frames(path: str, _: Units) -> Iterator[tuple[str, str]]:
    """The text of each frame, for :func:`parse`."""
    with open_with_compression(path, "r") as file:
        for text in frame_texts(file):
            yield "", text


def parse(text: str) -> Atoms:
    """The frame that has this text."""
    return next(read_xyz(StringIO(text), 0))


def num_atoms(text: str) -> int:
    """Number of atoms of the frame that has this text."""
    return int(text.partition("\n")[0])


def frame_texts(file: TextIO) -> Iterator[str]:
    """The text of each frame: a number of atoms, a comment, a line for each atom, lines that begin with ``VEC``.

    Raises:
        ValueError: a frame does not begin with a number of atoms, or the file ends within one.
    """
    number, line = 1, file.readline()
    while line:
        if not line.strip():  # an end of the file, as editors leave it
            if rest := next((text for text in file if text.strip()), ""):
                raise ValueError(f"line {number} is empty, but {rest.strip()!r} follows")
            return
        try:
            count = int(line)
        except ValueError:
            raise ValueError(f"line {number} should be a number of atoms, it is {line.strip()!r}") from None
        lines = [line, *(file.readline() for _ in range(count + 1))]
        if not lines[-1]:
            raise ValueError(f"the file ends within the frame of {count} atoms that begins in line {number}")
        while (line := file.readline()).lstrip().startswith("VEC"):
            lines.append(line)
        number += len(lines)
        yield "".join(lines)
