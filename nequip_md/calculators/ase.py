"""The ASE calculator of a compiled model."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from nequip_md.artifact import Artifact, load_artifact
from nequip_md.calculators.guard import Guard
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, VerletList, atomic_virials, forces_from_gradient


class NequIPMDCalculator(Calculator):
    """Energies, forces and stresses of an artifact that ``nequip-md-export`` wrote, in ASE's units (eV, angstrom).

    ``energies`` are the model's energies of each atom, isolated-atom energies included. ``stress`` and ``stresses`` are
    there when the cell has a volume; ``stresses`` shares every edge's part equally between its two atoms and adds up
    to ``stress``.

    The neighbour list is searched with a skin and kept until an atom could have come into the cutoff unseen; see
    :class:`nequip_md.graph.VerletList`, which is the attribute ``neighbors``.

    Several threads may share one calculator, which then serves them one after the other. A copy shares the artifact
    and nothing else. A pickled calculator holds the path of the artifact and the options, and loads the file again.
    In processes that are forked later PyTorch uses one thread.

    Example::

        from ase.build import molecule
        from nequip_md import NequIPMDCalculator

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
        guard: bool = True,
    ):
        """
        Args:
            model: a ``.pt2`` file, or an artifact that is loaded already.
            device: ``cpu`` or ``cuda``, as the artifact was compiled; default is its device.
            skin: angstrom added to the cutoff when neighbours are searched; 0 searches at every step.
            type_map: chemical symbol to type name of the model, where the two differ.
            guard: warn (:class:`nequip_md.ExtrapolationWarning`) the first time that two atoms are closer than such
                atoms ever are in the training data, and that a force is ten times the largest one there. Artifacts
                that do not know their training data are not guarded.

        Raises:
            NequIPMDError: the file cannot be loaded here, or an option is out of range.
        """
        super().__init__()
        if isinstance(model, (str, Path)):
            model = load_artifact(Path(model).absolute(), device=device)
        elif device is not None and torch.device(device).type != model.device.type:
            raise NequIPMDError(
                f"the artifact was loaded on {model.device}, not on {device}; load it there or leave device out"
            )
        self.artifact = model
        self.type_map = dict(type_map or {})
        self.neighbors = VerletList(model.pair_cutoffs, skin=skin)
        self.guard = Guard(model.metadata, model.type_names) if guard else None
        self._lock = threading.RLock()
        _use_one_thread_in_forked_processes()

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """The property of ``atoms``, computed if need be, whatever other threads ask for at the same time."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

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
        with self._lock:
            self.results = {}
            super().calculate(atoms, properties, system_changes)
            self.results = self._evaluate(self.atoms, stress_wanted=bool({"stress", "stresses"} & set(properties)))

    def _evaluate(self, atoms: Atoms, stress_wanted: bool) -> dict[str, Any]:
        structure = Structure.from_ase(atoms, self.artifact.type_names, self.type_map)
        volume = structure.volume
        if volume is None and stress_wanted:
            raise PropertyNotImplementedError(
                "stress needs a cell of three vectors that are not coplanar; this structure has no volume"
            )
        graph = self.neighbors.graph(structure).to(self.artifact.device)
        if self.guard:
            self.guard.check_distances(graph)
        energies, gradient = self.artifact(graph)
        forces = forces_from_gradient(graph, gradient)
        energy = float(energies.sum())
        if not (torch.isfinite(energies).all() and torch.isfinite(forces).all()):
            raise NequIPMDError(
                "the model gave an energy or a force that is not finite: atoms have probably come too close, or the run"
                " has diverged; check the structure and lower the time step"
            )
        if self.guard:
            self.guard.check_forces(graph, forces)
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy(),
        }
        if volume is not None:
            stresses = -atomic_virials(graph, gradient).cpu().numpy() / volume
            results["stresses"] = full_3x3_to_voigt_6_stress(stresses)
            results["stress"] = results["stresses"].sum(axis=0)
        return results

    def _options(self) -> dict[str, Any]:
        return {"skin": self.neighbors.skin, "type_map": self.type_map, "guard": self.guard is not None}

    def _state(self) -> dict[str, Any]:
        with self._lock:
            return copy.deepcopy({"atoms": self.atoms, "results": self.results})

    def __copy__(self) -> NequIPMDCalculator:
        other = type(self)(self.artifact, **self._options())
        other.__dict__.update(self._state())
        return other

    def __deepcopy__(self, memo: dict) -> NequIPMDCalculator:
        return self.__copy__()

    def __reduce__(self):
        arguments = type(self), self.artifact.path.absolute(), str(self.artifact.device), self._options()
        return _load_again, (*arguments, _identity(self.artifact)), self._state()


def _identity(artifact: Artifact) -> tuple[str, str]:
    return artifact.metadata.get("checkpoint_sha256", ""), artifact.metadata["precision"]


def _load_again(
    kind: type[NequIPMDCalculator], path: Path, device: str, options: dict[str, Any], identity: tuple[str, str]
) -> NequIPMDCalculator:
    """A calculator that was pickled.

    Raises:
        NequIPMDError: the file cannot be loaded here, or holds another model than when the calculator was pickled.
    """
    calculator = kind(path, device=device, **options)
    if _identity(calculator.artifact) != identity:
        raise NequIPMDError(
            f"{path} holds another model than when this calculator was pickled; put the old file back, or make a new"
            " calculator from the new one"
        )
    return calculator


@functools.cache
def _use_one_thread_in_forked_processes() -> None:
    """A forked process lacks the threads of its parent's OpenMP team, and would wait for them for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
