"""Data files to frames, one at a time: one module for each format that ASE does not read, or not as people expect.

A reader is a generator of ``(what, atoms)``, where ``what`` says which part of the file the frame is if "frame 3" does
not, and is empty otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.readers import ase_files, extxyz, lammps_dump, npz, spice
from nequip_md.training.data.units import ASE_UNITS, Units

__all__ = ["Format", "file_format", "read"]

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
    frames: Callable[[str, Units], Iterator[tuple[str, Atoms]]]
    has_units: bool


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
    path = os.fspath(path)
    format = file_format(path)
    count = 0
    frames = format.frames(path, units)
    while True:
        try:
            what, atoms = next(frames)
        except StopIteration:
            break
        except NequIPMDError as error:
            raise NequIPMDError(f"frame {count} of {path}: {error}" if count else f"{path}: {error}") from None
        except Exception as error:  # readers raise whatever their parsing meets
            raise NequIPMDError(
                f"{format.library} cannot read frame {count} of the data file {path}: {type(error).__name__}: {error}"
            ) from None
        name = f"frame {count} of {path}" + (f" ({what})" if what else "")
        yield name, atoms if format.has_units else units.to_lengths_in_angstrom(atoms)
        count += 1
    if not count:
        raise NequIPMDError(f"data file {path} holds no frame")
