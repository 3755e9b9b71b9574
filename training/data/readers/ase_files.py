"""Whatever ASE reads: trajectories, databases, output of electronic structure programs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.io.formats import UnknownFileTypeError, filetype, string2index

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.units import Units

WITHOUT_UNITS = {"extxyz", "xyz", "traj", "bundletrajectory", "netcdftrajectory", "db", "json", "cfg"}
"""ASE's formats that hold whatever was written; the others are a program's output, which ASE converts to eV and
angstrom."""


def kind(path: str) -> str:
    """ASE's name for the format of a file, which may be followed by the frames to read (``data.traj@10:20``).

    Raises:
        NequIPMDError: ASE does not know it.
    """
    path, _ = _parts(path)
    try:
        return filetype(path)
    except FileNotFoundError:
        raise NequIPMDError(
            f"data file {path} does not exist; relative paths start at the folder of the training file"
        ) from None
    except (UnknownFileTypeError, OSError) as error:
        raise NequIPMDError(
            f"ASE cannot read the data file {path}: its format is not known ({error}); formats go by the name,"
            " e.g. .extxyz, .traj, .db, vasprun.xml"
        ) from None


def _parts(path: str) -> tuple[str, slice]:
    """A file and the frames of it to read: all, or those that ``path@first:last`` names."""
    folder, slash, name = path.rpartition("/")
    if "@" not in name or os.path.exists(path):
        return path, slice(None)
    name, _, index = name.rpartition("@")
    try:
        wanted = string2index(index)
        wanted = wanted if isinstance(wanted, slice) else slice(wanted, (wanted + 1) or None)
    except (ValueError, TypeError):
        raise NequIPMDError(
            f"{path} does not exist, and @{index} names no frames of {folder + slash + name}, as @10:20 does"
        ) from None
    return folder + slash + name, wanted


def frames(path: str, _: Units) -> Iterator[tuple[str, Atoms]]:
    """Frames in the order of the file; a database's in the order of its rows, whose key-value pairs and data become
    entries of ``Atoms.info`` and ``Atoms.arrays``."""
    name, wanted = _parts(path)
    if kind(path) != "db":
        yield from (("", atoms) for atoms in ase.io.iread(name, wanted, do_not_split_by_at_sign=True))
        return
    for row in _rows(name, wanted):
        atoms = row.toatoms()
        for key, value in {**row.data, **row.key_value_pairs}.items():
            of_atoms = isinstance(value, np.ndarray) and value.shape[:1] == (len(atoms),) and value.ndim == 2
            (atoms.arrays if of_atoms else atoms.info)[key] = value
        yield f"row {row.id}", atoms


def _rows(name: str, wanted: slice) -> Iterator[AtomsRow]:
    options = {"readonly": True} if name.endswith("aselmdb") else {}
    try:
        database = ase.db.connect(name, use_lock_file=False, serial=True, **options)
    except ImportError:
        raise NequIPMDError(
            "databases of ASE in LMDB (.aselmdb) need a package of their own: pip install ase-db-backends"
        ) from None
    start, stop, step = wanted.indices(database.count())
    if step != 1:
        raise NequIPMDError(f"rows of a database are read one after the other, not with a step of {step}")
    return database.select(offset=start, limit=stop - start)
