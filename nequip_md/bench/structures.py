"""What is measured: liquid water of any size, a molecule, or a user's structure repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from math import ceil, floor
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_masses

from nequip_md.errors import NequIPMDError
from nequip_md.graph import atom_types

DEFAULT_SIZES = (192, 1536, 12288)
DENSITY = 0.997
"""Density of the water, g/cm^3 (298 K, 1 bar)."""
OH_LENGTH, HOH_ANGLE = 0.9572, np.radians(104.52)
"""Bond length and angle of a free molecule, angstrom and radian."""
CC_LENGTH, CH_LENGTH, CO_LENGTH = 1.53, 1.09, 1.21
"""Bond lengths of octanal: single bonds of carbon and the carbonyl group, angstrom."""
CCC_ANGLE, HCH_ANGLE = np.radians(112), np.radians(107)


def water_box(size: int, seed: int = 0) -> Atoms:
    """Rigid water molecules, randomly turned, around a cubic grid; periodic, cubic, in the order O H H.

    A centre is at most 0.1 angstrom off the grid in each direction, so that molecules stay more than 0.7 angstrom apart
    whatever their orientations.

    Args:
        size: wanted number of atoms; the box has 3 n^3, the nearest such number.
        seed: the same seed gives the same box.
    """
    root = (size / 3) ** (1 / 3)
    n = min(max(1, floor(root)), ceil(root), key=lambda k: abs(3 * k**3 - size))
    masses = atomic_masses[[8, 1, 1]]
    spacing = (masses.sum() / 0.602214076 / DENSITY) ** (1 / 3)  # 1 g/cm^3 is 0.6022 u/angstrom^3
    angles = HOH_ANGLE * np.array([0, 0.5, -0.5])
    molecule = OH_LENGTH * np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], 1) * [[0], [1], [1]]
    molecule -= masses @ molecule / masses.sum()
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    centres = spacing * (grid + 0.5) + rng.uniform(-0.1, 0.1, grid.shape)
    positions = centres[:, None] + molecule @ _rotations(len(grid), rng)
    return Atoms(
        numbers=np.tile([8, 1, 1], len(grid)), positions=positions.reshape(-1, 3), cell=[n * spacing] * 3, pbc=True
    )


def _rotations(count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly distributed rotation matrices [count, 3, 3], from random unit quaternions."""
    quaternions = rng.normal(size=(4, count))
    w, x, y, z = quaternions / np.linalg.norm(quaternions, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def octanal() -> Atoms:
    """A molecule of 25 atoms, C8H16O, all-trans: open in all directions, no cell.

    Textbook bond lengths and angles (module constants; 120 degrees around the carbonyl group), not a relaxed geometry.
    """
    half = CCC_ANGLE / 2
    step = CC_LENGTH * np.array([np.sin(half), np.cos(half), 0])
    carbons = np.stack([np.array([k, 0.5 * (-1) ** k, 0]) * step for k in range(8)])
    hydrogens = []
    for k, carbon in enumerate(carbons[:-1]):
        outwards = np.array([0, (-1) ** k * np.cos(HCH_ANGLE / 2), 0])
        sideways = np.array([0, 0, np.sin(HCH_ANGLE / 2)])
        hydrogens += [carbon + CH_LENGTH * (outwards + sideways), carbon + CH_LENGTH * (outwards - sideways)]
    hydrogens.append(carbons[0] - CH_LENGTH * np.array([np.sin(half), np.cos(half), 0]))  # the methyl group's third
    back = (carbons[-2] - carbons[-1]) / CC_LENGTH
    normal = np.array([0, 0, 1])
    around = [-0.5 * back + sign * np.sqrt(0.75) * np.cross(normal, back) for sign in (1, -1)]
    oxygen, hydrogen = sorted(around, key=lambda direction: -direction[0])  # trans: oxygen goes on along the chain
    hydrogens.append(carbons[-1] + CH_LENGTH * hydrogen)
    return Atoms("C8H16O", positions=[*carbons, *hydrogens, carbons[-1] + CO_LENGTH * oxygen])


def _lammps_data(text: str, path: Path) -> Atoms:
    """A LAMMPS data file in metal or real units; elements are those of the nearest masses, all directions periodic."""
    if not re.search(r"^\s*Masses\b", text, re.MULTILINE):
        raise NequIPMDError(
            f"{path} is a LAMMPS data file without a section Masses, so its elements are unknown; write it with masses"
        )
    # a suffix such as in "Atoms # full/kk" says how LAMMPS computed, not how the lines look
    text = re.sub(r"^(\s*Atoms\s*#\s*\w+)/\S+", r"\1", text, flags=re.MULTILINE)
    return ase.io.read(StringIO(text), format="lammps-data")


def read_structure(path: Path) -> Atoms:
    """Elements, positions, cell and periodicity of a structure in any format of ASE's, LAMMPS data files included.

    Raises:
        NequIPMDError: the file cannot be read, holds no atoms, or does not tell the elements.
    """
    try:
        with open(path, errors="replace") as file:
            is_data = re.search(r"^\s*\d+\s+atom types\b", file.read(4096), re.MULTILINE)
        atoms = _lammps_data(path.read_text(), path) if is_data else ase.io.read(path)
    except NequIPMDError:
        raise
    except Exception as error:  # ASE's readers raise errors of every kind
        raise NequIPMDError(f"ASE cannot read a structure from {path} ({type(error).__name__}: {error})") from error
    if not len(atoms):
        raise NequIPMDError(f"{path} holds no atoms")
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def repeated(atoms: Atoms, size: int) -> Atoms:
    """``atoms`` repeated along its periodic directions, the shortest first, until there are at least ``size`` atoms.

    Raises:
        NequIPMDError: more atoms are wanted, but no direction is periodic.
    """
    if len(atoms) < size and not atoms.pbc.any():
        raise NequIPMDError(
            f"the structure has {len(atoms)} atoms and no periodic direction, so it cannot be repeated "
            f"to {size}; give --sizes {len(atoms)}"
        )
    lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
    repeats = np.ones(3, dtype=int)
    while repeats.prod() * len(atoms) < size:
        repeats[np.argmin(lengths * repeats)] += 1
    return atoms.repeat(repeats)


def systems(sizes: Sequence[int] | None, structure: Atoms | None) -> list[Atoms]:
    """One structure for each size, smallest first; sizes that come out the same are taken once.

    Args:
        sizes: wanted numbers of atoms; None means :data:`DEFAULT_SIZES` of water, or the structure as it is.
        structure: instead of water.

    Raises:
        NequIPMDError: the structure cannot be repeated.
    """
    sizes = sizes or ([len(structure)] if structure else DEFAULT_SIZES)
    made = [repeated(structure, size) if structure else water_box(size) for size in sorted(sizes)]
    return list({len(atoms): atoms for atoms in made}.values())


def check_types(atoms: Atoms, type_names: Sequence[str]) -> None:
    """
    Raises:
        NequIPMDError: an element that the model has no type for.
    """
    try:
        atom_types(atoms, type_names)
    except NequIPMDError as error:
        raise NequIPMDError(f"{error}. Give a structure of the model's elements with --structure FILE") from None
