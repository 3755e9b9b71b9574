"""What is measured: liquid water of any size, or a user's structure repeated."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_masses

from nequip_md.errors import NequIPMDError

DENSITY = 0.997
"""Of the water, g/cm^3 (298 K, 1 bar)."""
OH_LENGTH, HOH_ANGLE = 0.9572, np.radians(104.52)
"""Of a free molecule: angstrom, radian."""


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
    return Atoms(numbers=np.tile([8, 1, 1], len(grid)), positions=positions.reshape(-1, 3), cell=[n * spacing] * 3, pbc=True)


def _rotations(count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly distributed rotation matrices [count, 3, 3], from random unit quaternions."""
    quaternions = rng.normal(size=(4, count))
    w, x, y, z = quaternions / np.linalg.norm(quaternions, axis=0)
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
    return np.moveaxis(np.array(rows), -1, 0)


def _read(path: Path) -> Atoms:
    try:
        atoms = ase.io.read(path)
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
        raise NequIPMDError(f"the structure has {len(atoms)} atoms and no periodic direction, so it cannot be repeated "
                            f"to {size}; give --sizes {len(atoms)}")
    lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
    repeats = np.ones(3, dtype=int)
    while repeats.prod() * len(atoms) < size:
        repeats[np.argmin(lengths * repeats)] += 1
    return atoms.repeat(repeats)


def systems(sizes: Sequence[int], structure: Path | None) -> list[Atoms]:
    """One structure for each size, smallest first; sizes that come out the same are taken once.

    Args:
        structure: a file that ASE reads, instead of water.

    Raises:
        NequIPMDError: the file cannot be read, or its structure cannot be repeated.
    """
    base = _read(structure) if structure else None
    made = [repeated(base, size) if base else water_box(size) for size in sorted(sizes)]
    return list({len(atoms): atoms for atoms in made}.values())


def check_types(atoms: Atoms, type_names: Sequence[str]) -> None:
    """
    Raises:
        NequIPMDError: an element that the model has no type for.
    """
    unknown = sorted(set(atoms.symbols.species()) - set(type_names))
    if unknown:
        raise NequIPMDError(f"the model has no type for {', '.join(unknown)}; its types are {', '.join(type_names)}. "
                            "Give a structure of these elements with --structure FILE")
