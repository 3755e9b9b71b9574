"""The ASE calculator of a compiled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from nequip_md.errors import NequIPMDError
from nequip_md.export import Artifact, load_artifact
from nequip_md.graph import VerletList, atomic_virials, forces_from_gradient


class NequIPMDCalculator(Calculator):
    """Energies, forces and stresses of an artifact that ``nequip-md-export`` wrote, in ASE's units (eV, angstrom).

    ``energies`` are the model's energies of each atom, isolated-atom energies included. ``stress`` and ``stresses`` are
    there when the cell has a volume; ``stresses`` shares every edge's part equally between its two atoms and adds up
    to ``stress``.

    The neighbour list is searched with a skin and kept until an atom could have come into the cutoff unseen; see
    :class:`nequip_md.graph.VerletList`, which is the attribute ``neighbors``.

    Example::

        from ase.build import molecule
        from nequip_md.calculators import NequIPMDCalculator

        water = molecule("H2O")
        water.calc = NequIPMDCalculator("water.pt2")
        print(water.get_potential_energy(), water.get_forces())
    """

    name = "nequip_md"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]

    def __init__(
        self,
        model: str | Path | Artifact,
        device: str | torch.device | None = None,
        skin: float = 1.0,
        type_map: Mapping[str, str] | None = None,
    ):
        """
        Args:
            model: a ``.pt2`` file, or an artifact that is loaded already.
            device: ``cpu`` or ``cuda``, as the artifact was compiled; default is its device.
            skin: angstrom added to the cutoff when neighbours are searched; 0 searches at every step.
            type_map: chemical symbol to type name of the model, where the two differ.

        Raises:
            NequIPMDError: the file cannot be loaded here, or an option is out of range.
        """
        super().__init__()
        if isinstance(model, (str, Path)):
            model = load_artifact(model, device=device)
        elif device is not None and torch.device(device).type != model.device.type:
            raise NequIPMDError(
                f"the artifact was loaded on {model.device}, not on {device}; load it there or leave device out"
            )
        self.artifact = model
        self.neighbors = VerletList(model.type_names, model.pair_cutoffs, skin=skin, type_map=type_map)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate everything at once; ASE calls this when the atoms have changed.

        Raises:
            NequIPMDError: an element that the model lacks, a bad cell, or an energy or force that is not finite.
            PropertyNotImplementedError: a stress was asked for, but the cell has no volume.
        """
        super().calculate(atoms, properties, system_changes)
        has_volume = self.atoms.cell.rank == 3
        if not has_volume and {"stress", "stresses"} & set(properties):
            raise PropertyNotImplementedError("stress needs a cell of three vectors; this structure has no volume")
        graph = self.neighbors.graph(self.atoms).to(self.artifact.device)
        energies, gradient = self.artifact(graph)
        forces = forces_from_gradient(graph, gradient)
        energy = float(energies.sum())
        if not (torch.isfinite(energies).all() and torch.isfinite(forces).all()):
            raise NequIPMDError(
                "the model gave an energy or a force that is not finite: atoms have probably come too close, or the run"
                " has diverged; check the structure and lower the time step"
            )
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy(),
        }
        if has_volume:
            stresses = -atomic_virials(graph, gradient).cpu().numpy() / self.atoms.get_volume()
            self.results["stresses"] = full_3x3_to_voigt_6_stress(stresses)
            self.results["stress"] = self.results["stresses"].sum(axis=0)
