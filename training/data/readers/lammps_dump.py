"""Text dumps of LAMMPS, parsed by ASE a frame at a time: forces are labels, energies are not in the file."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TextIO

from ase import Atoms
from ase.io.formats import open_with_compression
from ase.io.lammpsrun import read_lammps_dump_text

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.units import Units

_TIMESTEP = "ITEM: TIMESTEP"


def unit_style(start: bytes) -> str | None:
    """The style of units that a dump says it has been written with (``dump_modify units yes``), from its first bytes."""
    lines = start.decode(errors="replace").splitlines()
    return lines[1].strip() if lines[:1] == ["ITEM: UNITS"] and len(lines) > 1 else None


def frames(path: str, _: Units) -> Iterator[tuple[str, Atoms]]:
    """Frames in the order of the file, atoms in the order of their ids.

    Raises:
        NequIPMDError: a dump without chemical elements, whose types ASE would take for atomic numbers.
    """
    with open_with_compression(path, "r") as file:
        style = unit_style((file.readline() + file.readline()).encode()) or "metal"
        file.seek(0)
        for text in _frame_texts(file):
            columns = next((line.split()[2:] for line in text.splitlines() if line.startswith("ITEM: ATOMS")), [])
            if columns and not {"element", "mass"} & set(columns):
                raise NequIPMDError(
                    f"the dump has the columns {' '.join(columns)}, which do not say which elements the atoms are; add"
                    " the column element in LAMMPS: dump ... element x y z fx fy fz, dump_modify ID element H O ..."
                )
            atoms = read_lammps_dump_text(StringIO(text), index=0, units=style)
            if atoms.calc is not None:
                atoms.calc.results.pop("energy", None)  # ASE puts 0 there
            yield f"time step {atoms.info['timestep']}", atoms


def _frame_texts(file: TextIO) -> Iterator[str]:
    lines: list[str] = []
    for line in file:
        if line.startswith(_TIMESTEP):
            if lines:
                yield "".join(lines)
            lines = [line]
        elif lines:
            lines.append(line)
    if lines:
        yield "".join(lines)
