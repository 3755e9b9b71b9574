"""An artifact as a potential of i-PI (https://ipi-code.org), evaluated for all beads of a ring polymer at once.

i-PI loads this file by its path, which ``python -m nequip_md.calculators.ipi_driver`` prints; see docs/ipi.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import ase.io
import numpy as np
import torch
from ipi.pes.dummy import Dummy_driver
from ipi.utils.units import unit_to_internal, unit_to_user

from nequip_md.artifact import load_artifact
from nequip_md.calculators.guard import Guard
from nequip_md.errors import NequIPMDError
from nequip_md.graph import (
    Structure,
    VerletList,
    batch_graphs,
    forces_from_gradient,
    total_energy,
    virial_from_gradient,
)

__DRIVER_NAME__ = "nequip-md"
__DRIVER_CLASS__ = "NequIPMDDriver"

Result = tuple[float, np.ndarray, np.ndarray, str]
"""Energy, forces [N, 3], virial [3, 3] (-dE/d(strain), vectors in columns), all in i-PI's units, and further output (none)."""


class NequIPMDDriver(Dummy_driver):
    """Energies, forces and virials of an artifact that ``nequip-md-export`` wrote.

    Attributes:
        artifact: that is evaluated.

    Args:
        artifact: a ``.pt2`` file.
        template: a file that ASE reads, for the elements of the atoms in i-PI's order, and for which directions are periodic.
        device: ``cpu`` or ``cuda``, as the artifact was compiled; default is its device.
        skin: angstrom added to the cutoff when neighbours are searched; 0 searches at every step.
        guard: warn once where a run leaves the training data, as :class:`nequip_md.NequIPMDCalculator` does.

    Raises:
        NequIPMDError: a file cannot be read, the model has no type for an element, or an option is out of range.
    """

    def __init__(
        self,
        artifact: str,
        template: str,
        device: str | None = None,
        skin: float = 1.0,
        guard: bool = True,
        *args,
        **kwargs,
    ):
        # i-PI passes on whatever its input says
        if unknown := kwargs.keys() - {"verbose", "verbosity"}:
            raise NequIPMDError(
                f"i-PI's input has a parameter {min(unknown)!r}, which is not known;"
                " known are artifact, template, device, skin and guard"
            )
        self.artifact = load_artifact(artifact, device=device)
        try:
            atoms = ase.io.read(template)
        except Exception as error:  # of any of ASE's readers
            raise NequIPMDError(
                f"the template {template} cannot be read ({error}); give a structure that ASE reads, with i-PI's atoms in their order"
            ) from None
        # types and boundaries; positions and cell come from i-PI
        self._structure = Structure.from_ase(atoms, self.artifact.type_names)
        self._skin = skin
        self._lists = [self._new_list()]
        self._guard = Guard(self.artifact.metadata, self.artifact.type_names) if guard else None
        super().__init__(*args, **kwargs)

    def compute_structure(self, cell: np.ndarray, pos: np.ndarray) -> Result:
        """Evaluate one structure."""
        return self._evaluate([cell], [pos])[0]

    def compute(self, cell, pos) -> Result | list[Result]:
        """Evaluate a structure, or a list of them together.

        Args:
            cell: [3, 3], bohr, vectors in columns; or a list.
            pos: [N, 3], bohr; or a list.

        Raises:
            NequIPMDError: the template has another number of atoms, or an energy or force is not finite.
        """
        if isinstance(cell, list):
            return self._evaluate(cell, pos)
        return self.compute_structure(cell, pos)

    def _new_list(self) -> VerletList:
        return VerletList(self.artifact.pair_cutoffs, skin=self._skin)

    def _evaluate(self, cells: Sequence[np.ndarray], positions: Sequence[np.ndarray]) -> list[Result]:
        atoms = self._structure.num_atoms
        while len(self._lists) < len(cells):
            self._lists.append(self._new_list())
        graphs = []
        for neighbors, cell, given in zip(self._lists, cells, positions):
            if given.shape != (atoms, 3):
                raise NequIPMDError(
                    f"i-PI has {len(given)} atoms, but the template has {atoms}; give as a template the structure that i-PI begins with"
                )
            structure = Structure(
                unit_to_user("length", "angstrom", given),
                unit_to_user("length", "angstrom", cell.T),
                self._structure.pbc,
                self._structure.types,
            )
            graphs.append(neighbors.graph(structure))
            if self._guard:
                self._guard.check_distances(graphs[-1])
        graph = batch_graphs(graphs).to(self.artifact.device)
        node_energy, gradient = self.artifact(graph)
        forces = forces_from_gradient(graph, gradient).cpu().reshape(len(graphs), atoms, 3)
        if not (torch.isfinite(node_energy).all() and torch.isfinite(forces).all()):
            raise NequIPMDError(
                "the model gave an energy or a force that is not finite: atoms have probably come too close, or the run"
                " has diverged; check the structure and lower the time step"
            )
        if self._guard:
            for of_structure, found in zip(graphs, forces, strict=True):
                self._guard.check_forces(of_structure, found)
        energies = unit_to_internal("energy", "electronvolt", total_energy(graph, node_energy).cpu().numpy())
        of_atoms = unit_to_internal("force", "ev/ang", forces.numpy())
        virials = unit_to_internal("energy", "electronvolt", virial_from_gradient(graph, gradient).cpu().numpy())
        return [(float(e), f, w.T.copy(), "") for e, f, w in zip(energies, of_atoms, virials, strict=True)]


if __name__ == "__main__":
    print(__file__)
