"""Frames of a classical water model at many temperatures, to train a potential with which molecular dynamics is stable.

    python benchmarks/nve_water/make_data.py train.extxyz --frames 660 --seed 11
    python benchmarks/nve_water/make_data.py test.extxyz --frames 40 --seed 13
    nequip-md-train benchmarks/nve_water/train.yaml

Flexible SPC water (Wu, Tepper and Voth, J. Chem. Phys. 124, 024503 (2006)) in LAMMPS' own styles, 192 atoms, charges by damped
shifted force within 6 angstrom, so that the model is local. Frames are 0.4 ps apart, each with a thermostat of its own temperature,
250 to 700 K. nve_drift.py takes the potential with --model; needs nequip-md[lammps].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import kcal, mol

from nequip_md.bench.lammps_run import failure, run_lammps
from nequip_md.cli import exit_status

WATER = Path(__file__).resolve().parents[2] / "examples" / "lammps" / "water" / "water.data"
TEMPERATURES = (250, 300, 350, 400, 500, 700)
KCAL_PER_MOL = kcal / mol

INPUT = """
units real
atom_style full
read_data water.data
bond_style harmonic
bond_coeff 1 529.581 1.012
angle_style harmonic
angle_coeff 1 37.95 113.24
pair_style lj/cut/coul/dsf 0.25 6.0
pair_coeff 1 1 0.1554253 3.165492
pair_coeff * 2 0.0 1.0
special_bonds lj/coul 0.0 0.0 0.0
timestep 0.25
minimize 0.0 1e-2 2000 20000
velocity all create 300.0 {seed} dist gaussian
fix nve all nve
fix warm all langevin 300.0 300.0 100.0 {seed}
run 8000
unfix warm
thermo_style custom step temp pe
thermo_modify format float %.15g
"""

FRAME = """
fix warm all langevin {kelvin} {kelvin} 50.0 {seed}
run 1600
unfix warm
run 0
write_dump all custom frame.{frame} id x y z fx fy fz modify sort id format float %.15g
print "$(pe:%.15g)" append energies
"""


def write_molecules(atoms: Atoms, path: Path) -> list[int]:
    """Write a data file with bonds and angles, molecule by molecule; returns the order of its atoms."""
    symbols = np.array(atoms.get_chemical_symbols())
    oxygens, hydrogens = np.where(symbols == "O")[0], np.where(symbols == "H")[0]
    distances = atoms.get_all_distances(mic=True)[np.ix_(hydrogens, oxygens)]
    owner = distances.argmin(axis=1)
    order = [int(i) for k, o in enumerate(oxygens) for i in (o, *hydrogens[owner == k])]
    count = len(oxygens)
    assert len(order) == 3 * count and all(
        symbols[order].reshape(-1, 3)[k].tolist() == ["O", "H", "H"] for k in range(count)
    )
    with open(path, "w") as file:
        file.write(
            f"water\n\n{3 * count} atoms\n{2 * count} bonds\n{count} angles\n2 atom types\n1 bond types\n1 angle types\n\n"
        )
        file.writelines(f"0.0 {length:.12g} {axis}lo {axis}hi\n" for length, axis in zip(atoms.cell.lengths(), "xyz"))
        file.write("\nMasses\n\n1 15.999\n2 1.008\n\nAtoms # full\n\n")
        for i, at in enumerate(atoms.get_positions(wrap=True)[order]):
            kind, charge = (1, -0.82) if i % 3 == 0 else (2, 0.41)
            file.write(f"{i + 1} {i // 3 + 1} {kind} {charge} {at[0]:.10f} {at[1]:.10f} {at[2]:.10f}\n")
        file.write("\nBonds\n\n")
        file.writelines(f"{2 * k + j} 1 {3 * k + 1} {3 * k + 1 + j}\n" for k in range(count) for j in (1, 2))
        file.write("\nAngles\n\n")
        file.writelines(f"{k + 1} 1 {3 * k + 2} {3 * k + 1} {3 * k + 3}\n" for k in range(count))
    return order


def make(frames: int, seed: int) -> list[Atoms]:
    """
    Raises:
        NequIPMDError: LAMMPS is missing or failed.
    """
    start = read(WATER, format="lammps-data", units="metal", Z_of_type={1: 8, 2: 1})
    kelvins = np.random.default_rng(seed).choice(TEMPERATURES, size=frames)
    script = INPUT.format(seed=seed)
    script += "".join(
        FRAME.format(kelvin=kelvin, seed=seed + frame, frame=frame) for frame, kelvin in enumerate(kelvins)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = write_molecules(start, folder / "water.data")
        done = run_lammps(script, folder, ranks=1, threads=1)
        if done.returncode:
            raise failure(done, len(start))
        energies = np.loadtxt(folder / "energies", ndmin=1) * KCAL_PER_MOL
        result = []
        for k, energy in enumerate(energies):
            table = np.loadtxt(folder / f"frame.{k}", skiprows=9)
            atoms = Atoms(start.numbers[order], table[:, 1:4], cell=start.cell, pbc=True)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=table[:, 4:7] * KCAL_PER_MOL)
            result.append(atoms)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .extxyz file to write")
    parser.add_argument("--frames", type=int, default=660)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    sys.exit(exit_status(lambda: write(options.output, make(options.frames, options.seed))))


if __name__ == "__main__":
    main()
