"""Data files to frames, one at a time: one module for each format that ASE does not read, or not as people expect.

A reader is a generator of ``(what, frame)``, where ``what`` says which part of the file the frame is if "frame 3" does
not, and is empty otherwise. The frame is an ``Atoms``, or a text that another process may parse.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.readers import ase_files, extxyz, lammps_dump, npz, spice
from nequip_md.training.data.units import ASE_UNITS, Units

__all__ = ["Format", "RawFrame", "file_format", "raw_frames", "read"]

_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Format:
    """How a file is read.

    Attributes:
        library: what reads it, for messages.
        frames: the reader, called with the path and the units that the user has given.
        has_units: energies, lengths, forces and stresses come in eV and angstrom, because the format says in which
            units its values are, or the reader has converted them.
    """

    library: str
    frames: Callable[[str, Units], Iterator[tuple[str, Atoms | str]]]
    has_units: bool


@dataclass(frozen=True)
class RawFrame:
    """A frame of a file, which :meth:`read` parses where that takes time.

    Attributes:
        path: of the file.
        number: of the frame in the file, from 0.
        what: which part of the file it is, where the number does not say, or empty.
        content: the frame, or its text in extended XYZ.
        library: what reads it, for messages.
        units: of its lengths.
    """

    path: str
    number: int
    what: str
    content: Atoms | str
    library: str
    units: Units

    @property
    def num_atoms(self) -> int:
        return extxyz.num_atoms(self.content) if isinstance(self.content, str) else len(self.content)

    def read(self) -> tuple[str, Atoms]:
        """Its name for messages ("frame 3 of water.extxyz") and itself, with lengths in angstrom.

        Raises:
            NequIPMDError: the text cannot be parsed.
        """
        with _naming(self.library, self.path, self.number):
            atoms = extxyz.parse(self.content) if isinstance(self.content, str) else self.content
        name = f"frame {self.number} of {self.path}" + (f" ({self.what})" if self.what else "")
        return name, self.units.to_lengths_in_angstrom(atoms)


def file_format(path: str | os.PathLike) -> Format:
    """The format of a data file, by its content and its name.

    Raises:
        NequIPMDError: no such file, or one of unknown format.
    """
    path = os.fspath(path)
    if path.endswith(".graphs"):
        raise NequIPMDError(
            f"{path} is a store of graphs, which training files take, but it does not hold the structures; give the"
            " files that it was made of"
        )
    if os.path.isdir(path) or (not os.path.exists(path) and "@" in os.path.basename(path)):
        return _ase_format(path)  # a bundle of ASE's, or "file@0:100"
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        raise NequIPMDError(
            f"data file {path} does not exist; relative paths start at the folder of the training file"
        ) from None
    except OSError as error:
        raise NequIPMDError(f"cannot read the data file {path}: {error.strerror}") from None
    if not start:
        raise NequIPMDError(f"data file {path} holds no frame: it is empty")
    if start.startswith(_HDF5):
        return Format("h5py", spice.frames, True)
    if start.startswith(b"PK") and path.endswith(".npz"):
        return Format("NumPy", npz.frames, True)
    if start.startswith(b"ITEM:"):
        return Format("ASE", lammps_dump.frames, lammps_dump.unit_style(start) is not None)
    return _ase_format(path)


def _ase_format(path: str) -> Format:
    kind = ase_files.kind(path)
    if kind == "extxyz" and os.path.exists(path):
        return Format("ASE", extxyz.frames, False)
    return Format("ASE", ase_files.frames, kind not in ase_files.WITHOUT_UNITS)


def read(path: str | os.PathLike, units: Units = ASE_UNITS) -> Iterator[tuple[str, Atoms]]:
    """Every frame of a file with its name for messages ("frame 3 of water.extxyz"), read one after the other.

    Lengths are in angstrom. Labels are in eV and angstrom where :attr:`Format.has_units` is set, otherwise they are
    left as the file has them.

    Args:
        units: of the file, where the format does not say.

    Raises:
        NequIPMDError: a file that does not exist, that cannot be read (the frame is named), or that holds no frame.
    """
    return (frame.read() for frame in raw_frames(path, units))


def raw_frames(path: str | os.PathLike, units: Units = ASE_UNITS) -> Iterator[RawFrame]:
    """Every frame of a file before it is parsed. Args, Raises: as :func:`read`."""
    path = os.fspath(path)
    format = file_format(path)
    count = 0
    frames = format.frames(path, units)
    while True:
        with _naming(format.library, path, count):
            what, content = next(frames, (None, None))
        if content is None:
            break
        yield RawFrame(path, count, what, content, format.library, ASE_UNITS if format.has_units else units)
        count += 1
    if not count:
        raise NequIPMDError(f"data file {path} holds no frame")


@contextmanager
def _naming(library: str, path: str, number: int) -> Iterator[None]:
    """Errors of readers and parsers name the frame."""
    try:
        yield
    except NequIPMDError as error:
        raise NequIPMDError(f"frame {number} of {path}: {error}" if number else f"{path}: {error}") from None
    except Exception as error:  # readers raise whatever their parsing meets
        raise NequIPMDError(
            f"{library} cannot read frame {number} of the data file {path}: {type(error).__name__}: {error}"
        ) from None
