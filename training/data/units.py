"""Units of the values in data files, and their factors to eV and angstrom (ASE's constants)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ase.units as u
from ase import Atoms

if TYPE_CHECKING:
    from nequip_md.training.config import DataConfig

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": u.Hartree,
    "rydberg": u.Rydberg,
    "kcal/mol": u.kcal / u.mol,
    "kJ/mol": u.kJ / u.mol,
}
"""eV in each unit of energy."""
LENGTH = {"angstrom": 1.0, "bohr": u.Bohr, "nm": u.nm}
"""Angstrom in each unit of length."""
FORCE = {f"{e}/{l}": ENERGY[e] / LENGTH[l] for e in ENERGY for l in LENGTH}
"""eV/angstrom in each unit of force."""
STRESS = {"eV/angstrom^3": 1.0, "kbar": 0.1 * u.GPa, "GPa": u.GPa}
"""eV/angstrom^3 in each unit of stress."""
SIGN = {"tension": 1.0, "compression": -1.0}
"""By what a stress is positive under, the factor to ASE's sign."""


@dataclass(frozen=True)
class Units:
    """Units of a file's values, by their names in :data:`ENERGY` and so on; None stands for a unit that is not given.

    Attributes:
        energy: of energies and virials; eV if not given.
        length: of positions and cells; angstrom if not given.
        force: ``energy/length`` if not given.
        stress: eV/angstrom^3 if not given.
        stress_sign: ``tension`` where a stress is positive under tension, as ASE's (if not given), or ``compression``.
    """

    energy: str | None = None
    length: str | None = None
    force: str | None = None
    stress: str | None = None
    stress_sign: str | None = None

    @classmethod
    def from_config(cls, config: DataConfig) -> Units:
        names = (config.energy_unit, config.length_unit, config.force_unit, config.stress_unit, config.stress_sign)
        return cls(*names)

    @property
    def to_ev(self) -> float:
        return ENERGY[self.energy or "eV"]

    @property
    def to_angstrom(self) -> float:
        return LENGTH[self.length or "angstrom"]

    @property
    def to_ev_per_angstrom(self) -> float:
        return self.to_ev / self.to_angstrom if self.force is None else FORCE[self.force]

    @property
    def to_ase_stress(self) -> float:
        """Factor to eV/angstrom^3, positive under tension."""
        return STRESS[self.stress or "eV/angstrom^3"] * SIGN[self.stress_sign or "tension"]

    @property
    def are_ase(self) -> bool:
        """Whether all of them are ASE's, so that nothing is converted."""
        return self.to_ev == self.to_angstrom == self.to_ev_per_angstrom == self.to_ase_stress == 1

    def to_lengths_in_angstrom(self, atoms: Atoms) -> Atoms:
        """The structure with positions and cell in angstrom; its labels stay as they are."""
        if self.to_angstrom == 1:
            return atoms
        calculator, scaled = atoms.calc, atoms.copy()
        scaled.set_cell(scaled.cell.array * self.to_angstrom)
        scaled.positions *= self.to_angstrom
        scaled.calc = calculator
        return scaled


ASE_UNITS = Units()
