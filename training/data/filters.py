"""Which frames to take from large data sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.labels import FrameLabels


@dataclass(frozen=True)
class Filter:
    """Conditions that a frame has to meet; None stands for no condition.

    Attributes:
        max_force: largest norm of a force on an atom, eV/angstrom; frames without forces meet it.
        charge: total charge in ``Atoms.info["charge"]``, elementary charges.
        elements: chemical symbols that a frame may have.
        within: angstrom; each atom has another one (or an image of one) nearer than this.
        single_fragment: one molecule alone, by the number in ``Atoms.info["fragments"]``.
    """

    max_force: float | None = None
    charge: float | None = None
    elements: frozenset[str] | None = None
    single_fragment: bool = False
    within: float | None = None

    def __call__(self, atoms: Atoms, found: FrameLabels) -> str | None:
        """The condition that the frame does not meet, in words; None if it meets all.

        Raises:
            NequIPMDError: the frame does not say its charge or its number of fragments.
        """
        if self.elements is not None and (other := set(atoms.symbols) - self.elements):
            return f"elements {' '.join(sorted(other))}"
        if self.charge is not None and _info(atoms, "charge", "--charge") != self.charge:
            return "another charge"
        if self.single_fragment and _info(atoms, "fragments", "--fragments") != 1:
            return "several fragments"
        if self.within is not None and len(np.unique(neighbor_list("i", atoms, self.within))) < len(atoms):
            return "an atom too far from all others"
        if self.max_force is not None and found.forces is not None and len(atoms):
            if np.linalg.norm(found.forces, axis=1).max() > self.max_force:
                return "a larger force"
        return None


def _info(atoms: Atoms, name: str, option: str) -> float:
    if name not in atoms.info:
        raise NequIPMDError(
            f"{option} needs the entry {name} of a frame, as those of the SPICE data set have it; {atoms.symbols} has"
            f" {', '.join(atoms.info) or 'none'}: leave the option out"
        )
    return atoms.info[name]
