"""Statistics of the training data that a model needs before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.training.data import Sample
from nequip_md.training.labels import Labels, describe_names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """Statistics of training data. Types that no frame holds are left out of the mappings.

    Attributes:
        num_frames: frames in all.
        num_atoms: atoms of each type.
        avg_num_neighbors: edges per atom.
        avg_num_neighbors_by_type: edges per centre, for each type of the centre.
        force_rms: root mean square of the force components, eV/angstrom; None without forces.
        force_rms_by_type: the same for each type; None without forces.
        least_squares_shifts: energies of the types, eV, that fit the total energies best; None without energies.
        composition_rank: linearly independent compositions; below the number of types the shifts are not unique and
            those of the smallest norm are taken.
        energy_rms: root mean square of the energy per atom without the shifts, eV; None without energies.
        closest_distances: smallest distance of each pair of types, angstrom, symmetric; without the pairs that no
            frame has within the cutoff.
        largest_force: largest norm of a force on an atom, eV/angstrom; None without forces.
    """

    num_frames: int
    num_atoms: dict[str, int]
    avg_num_neighbors: float
    avg_num_neighbors_by_type: dict[str, float]
    force_rms: float | None
    force_rms_by_type: dict[str, float] | None
    least_squares_shifts: dict[str, float] | None
    composition_rank: int
    energy_rms: float | None
    closest_distances: dict[str, dict[str, float]]
    largest_force: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compute_statistics(samples: Sequence[Sample], type_names: Sequence[str]) -> Statistics:
    """Statistics of labelled graphs; labels that a sample lacks are left out."""
    num_types = len(type_names)
    composition = np.stack([np.bincount(s.graph.node_types.numpy(), minlength=num_types) for s in samples])
    atoms = composition.sum(0)
    edges = np.zeros(num_types)
    squares, labelled = np.zeros(num_types), np.zeros(num_types)
    closest, largest = np.full((num_types, num_types), np.inf), None
    for s in samples:
        types = s.graph.node_types
        edges += np.bincount(types.numpy(), weights=s.graph.row_ptr.diff().numpy(), minlength=num_types)
        known = torch.isfinite(s.forces).all(dim=1)
        squares += np.bincount(
            types[known].numpy(), weights=s.forces[known].square().sum(1).numpy(), minlength=num_types
        )
        labelled += 3 * np.bincount(types[known].numpy(), minlength=num_types)
        centre, neighbour = types[s.graph.edge_index].numpy()
        np.minimum.at(closest, (centre, neighbour), s.graph.edge_vectors.norm(dim=1).numpy())
        if known.any():
            largest = max(largest or 0.0, s.forces[known].norm(dim=1).max().item())

    energy = np.array([s.energy.item() for s in samples])
    known = np.isfinite(energy)
    shifts = residual = None
    rank = int(np.linalg.matrix_rank(composition[known])) if known.any() else 0
    if known.any():
        solution = np.linalg.lstsq(composition[known].astype(float), energy[known], rcond=None)[0]
        residual = (energy[known] - composition[known] @ solution) / composition[known].sum(1)
        residual = float(np.sqrt(np.mean(residual**2)))
        shifts = _by_type(type_names, solution, composition[known].any(0))
    return Statistics(
        num_frames=len(samples),
        num_atoms={name: int(n) for name, n in zip(type_names, atoms, strict=True)},
        avg_num_neighbors=float(edges.sum() / atoms.sum()),
        avg_num_neighbors_by_type=_by_type(type_names, edges / np.maximum(atoms, 1), atoms > 0),
        force_rms=float(np.sqrt(squares.sum() / labelled.sum())) if labelled.any() else None,
        force_rms_by_type=_by_type(type_names, np.sqrt(squares / np.maximum(labelled, 1)), labelled > 0)
        if labelled.any()
        else None,
        least_squares_shifts=shifts,
        composition_rank=rank,
        energy_rms=residual,
        closest_distances=_by_pair(type_names, np.minimum(closest, closest.T)),
        largest_force=largest,
    )


def _by_type(type_names: Sequence[str], values: np.ndarray, present: np.ndarray) -> dict[str, float]:
    return {name: float(v) for name, v, is_there in zip(type_names, values, present, strict=True) if is_there}


def _by_pair(type_names: Sequence[str], distances: np.ndarray) -> dict[str, dict[str, float]]:
    rows = {a: _by_type(type_names, distances[i], np.isfinite(distances[i])) for i, a in enumerate(type_names)}
    return {a: row for a, row in rows.items() if row}


def isolated_atom_energies(
    frames: Sequence[tuple[str, Atoms]], type_names: Sequence[str], labels: Labels
) -> dict[str, float]:
    """Energy of the isolated atom of each type, eV.

    Raises:
        NequIPMDError: a frame has several atoms or no energy, or a type has several energies or none.
    """
    energies: dict[str, float] = {}
    for name, atoms in frames:
        try:
            energy = labels.of(atoms).energy
        except NequIPMDError as error:
            raise NequIPMDError(f"{name}: {error}") from None
        if len(atoms) != 1 or energy is None:
            raise NequIPMDError(
                f"{name}: a frame of data.isolated_atoms, or one marked config_type=IsolatedAtom, is one atom with its"
                f" energy; this one has {len(atoms)} atoms, energy {energy}, and {describe_names([atoms])}"
            )
        symbol = atoms.get_chemical_symbols()[0]
        if energies.setdefault(symbol, energy) != energy:
            raise NequIPMDError(
                f"{name}: {symbol} has two energies as an isolated atom, {energies[symbol]} and {energy} eV"
            )
    if missing := [t for t in type_names if t not in energies]:
        raise NequIPMDError(
            f"the isolated atoms (data.isolated_atoms and frames marked config_type=IsolatedAtom) have no energy of"
            f" {', '.join(missing)}, only of {', '.join(energies) or 'none'}; add it, or give model.energy_shifts:"
            " least_squares"
        )
    return {t: energies[t] for t in type_names}


def automatic_value(
    key: str, word: str, statistics: Statistics, isolated: dict[str, float] | None, type_names: Sequence[str]
) -> float | dict[str, float]:
    """The value that a word of :data:`~nequip_md.training.config.AUTO_VALUES` stands for.

    Args:
        isolated: energies of the isolated atoms, where they are known.

    Raises:
        NequIPMDError: the training data does not determine it.
    """
    if key == "energy_shifts" and word == "auto":
        word = "least_squares" if isolated is None else "isolated_atoms"
    value, needs = {
        ("avg_num_neighbors", "auto"): (statistics.avg_num_neighbors, "atoms with a neighbour within the cutoff"),
        ("avg_num_neighbors", "auto_by_type"): (
            statistics.avg_num_neighbors_by_type,
            "atoms with a neighbour within the cutoff",
        ),
        ("energy_scales", "auto"): (statistics.force_rms, "forces that differ from 0"),
        ("energy_scales", "force_rms"): (statistics.force_rms, "forces that differ from 0"),
        ("energy_scales", "force_rms_by_type"): (statistics.force_rms_by_type, "forces that differ from 0"),
        ("energy_shifts", "least_squares"): (statistics.least_squares_shifts, "energies"),
        ("energy_shifts", "isolated_atoms"): (
            isolated,
            "energies of isolated atoms (data.isolated_atoms, or frames marked config_type=IsolatedAtom)",
        ),
    }[key, word]
    if isinstance(value, dict):
        lacking = [t for t in type_names if t not in value or (value[t] == 0 and key != "energy_shifts")]
    else:
        lacking = [] if value else list(type_names)
    if lacking:
        raise NequIPMDError(
            f"model.{key}: {word!r} needs {needs} of {', '.join(lacking)}, which the training data lacks;"
            f" give a number, or a number for each type, in model.{key}"
        )
    return value
