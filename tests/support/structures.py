"""Small structures that tests share, as ase.Atoms. Each call returns a new object with the same atoms."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule


def water_box(n: int = 2, seed: int = 0) -> Atoms:
    """n^3 water molecules (3 n^3 atoms) at liquid density, randomly turned, on a perturbed grid; periodic, cubic."""
    rng = np.random.default_rng(seed)
    spacing = 3.105  # 0.997 g/cm^3
    box = Atoms(cell=[n * spacing] * 3, pbc=True)
    for corner in np.ndindex(n, n, n):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        centre = (np.array(corner) + 0.5) * spacing + rng.uniform(-0.1, 0.1, 3)
        water.translate(centre - water.get_center_of_mass())
        box += water
    box.rattle(0.02, rng=rng)
    return box


def small_molecule() -> Atoms:
    """Ethanol: C, H, O; open in all directions, no cell."""
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=1)
    return ethanol


def triclinic_crystal(symbols: tuple[str, str] = ("O", "H"), repeat: tuple[int, int, int] = (2, 2, 2)) -> Atoms:
    """A sheared, perturbed rocksalt crystal in its primitive cell, two types; periodic."""
    crystal = bulk("NaCl", "rocksalt", a=4.4).repeat(repeat)
    crystal.set_chemical_symbols(list(symbols) * (len(crystal) // 2))
    strain = np.eye(3) + np.array([[0.02, 0.05, -0.03], [0.0, -0.01, 0.04], [0.0, 0.0, 0.03]])
    crystal.set_cell(crystal.cell[:] @ strain, scale_atoms=True)
    crystal.rattle(0.08, seed=2)
    return crystal


def slab(symbol: str = "O") -> Atoms:
    """Two layers of a close-packed surface: periodic in x and y, open in z, where the cell vector is zero."""
    layers = fcc111(symbol, size=(2, 2, 2), a=4.0, periodic=False)
    layers.pbc = (True, True, False)
    layers.rattle(0.05, seed=3)
    return layers


def single_atom(symbol: str = "H") -> Atoms:
    """One atom without neighbours; no cell."""
    return Atoms(symbol, positions=[[0.3, -0.2, 0.1]])


def distant_parts(distance: float = 50.0) -> tuple[Atoms, Atoms, Atoms]:
    """Two molecules and both together, ``distance`` angstrom apart."""
    first, second = small_molecule(), molecule("H2O")
    second.rattle(0.05, seed=4)
    moved = second.copy()
    moved.translate([distance, 0.0, 0.0])
    return first, second, first + moved


def elongated_cell(symbols: tuple[str, ...] = ("H", "O"), atoms: int = 12) -> Atoms:
    """A chain along z in a periodic cell of 3.2 x 3.4 x (2 angstrom for each atom): narrower than usual cutoffs."""
    rng = np.random.default_rng(5)
    positions = np.column_stack([rng.uniform(0, 0.8, atoms), rng.uniform(0, 0.8, atoms), 2.0 * np.arange(atoms)])
    return Atoms([symbols[k % len(symbols)] for k in range(atoms)], positions, cell=[3.2, 3.4, 2.0 * atoms], pbc=True)


def dense_box(symbols: tuple[str, ...] = ("H", "O"), repeat: int = 3) -> Atoms:
    """repeat^3 atoms on a perturbed cubic grid of 1.4 angstrom: many neighbours for each; periodic."""
    rng = np.random.default_rng(6)
    grid = np.array(list(np.ndindex(repeat, repeat, repeat)), dtype=float) * 1.4
    names = [symbols[k % len(symbols)] for k in range(len(grid))]
    return Atoms(names, grid + rng.uniform(-0.15, 0.15, grid.shape), cell=[1.4 * repeat] * 3, pbc=True)
