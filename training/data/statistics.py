"""Statistics of the training data that a model needs before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.labels import Labels, describe_names
from nequip_md.training.data.sample_set import SampleSet
from nequip_md.training.data.samples import Sample, collate

log = logging.getLogger(__name__)

_BATCH = 32
"""Samples that are looked at together."""


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


def compute_statistics(samples: Iterable[Sample], type_names: Sequence[str]) -> Statistics:
    """Statistics of labelled graphs, in one pass and without keeping them; labels that a sample lacks are left out."""
    num_types, num_frames = len(type_names), 0
    atoms = np.zeros(num_types, dtype=np.int64)
    edges = np.zeros(num_types)
    squares, labelled = np.zeros(num_types), np.zeros(num_types)
    closest, largest = np.full((num_types, num_types), np.inf), None
    energies = _CompositionFit(num_types)
    for s in _batches(samples):
        frames = s.graph.num_graphs
        num_frames += frames
        types = s.graph.node_types.numpy()
        # a row for each frame, so that sums are those of one frame after the other, to the last digit
        of_frame = s.graph.node_graph.numpy() * num_types + types
        shape, size = (frames, num_types), frames * num_types
        composition = np.bincount(of_frame, minlength=size).reshape(shape)
        atoms += composition.sum(axis=0)
        edges += np.bincount(types, weights=s.graph.row_ptr.diff().numpy(), minlength=num_types)
        known = torch.isfinite(s.forces).all(dim=1)
        of_known = s.forces[known].square().sum(1).numpy()
        rows = np.bincount(of_frame[known.numpy()], weights=of_known, minlength=size).reshape(shape)
        squares = np.cumsum(np.concatenate([squares[None], rows]), axis=0)[-1]
        labelled += 3 * np.bincount(types[known.numpy()], minlength=num_types)
        centre, neighbour = types[s.graph.edge_index.numpy()]
        np.minimum.at(closest, (centre, neighbour), s.graph.edge_vectors.norm(dim=1).numpy())
        if known.any():
            largest = max(largest or 0.0, s.forces[known].norm(dim=1).max().item())
        for of_sample, energy in zip(composition, s.energy.tolist()):
            if np.isfinite(energy):
                energies.add(of_sample, energy)
    shifts, rank, residual = energies.result()
    return Statistics(
        num_frames=num_frames,
        num_atoms={name: int(n) for name, n in zip(type_names, atoms, strict=True)},
        avg_num_neighbors=float(edges.sum() / atoms.sum()),
        avg_num_neighbors_by_type=_by_type(type_names, edges / np.maximum(atoms, 1), atoms > 0),
        force_rms=float(np.sqrt(squares.sum() / labelled.sum())) if labelled.any() else None,
        force_rms_by_type=_by_type(type_names, np.sqrt(squares / np.maximum(labelled, 1)), labelled > 0)
        if labelled.any()
        else None,
        least_squares_shifts=None if shifts is None else _by_type(type_names, shifts, energies.present),
        composition_rank=rank,
        energy_rms=residual,
        closest_distances=_by_pair(type_names, np.minimum(closest, closest.T)),
        largest_force=largest,
    )


def _batches(samples: Iterable[Sample]) -> Iterator[Sample]:
    if isinstance(samples, SampleSet):
        yield from samples.in_batches(_BATCH)
        return
    samples = iter(samples)
    while some := list(islice(samples, _BATCH)):
        yield collate(some)


class _CompositionFit:
    """Least squares fit of energies by composition, a block of frames at a time.

    Of the rows (composition, energy) it keeps the triangular factor of their QR decomposition, which has the same
    least squares solution, and none of the precision that sums of squares lose; another one of the rows divided by the
    number of atoms gives the residual per atom.

    Attributes:
        present: types of which some frame has atoms.
    """

    _BLOCK = 1024

    def __init__(self, num_types: int):
        self.present = np.zeros(num_types, dtype=bool)
        self._count = 0
        self._rows: list[np.ndarray] = []
        self._total = self._per_atom = np.zeros((0, num_types + 1))

    def add(self, composition: np.ndarray, energy: float) -> None:
        self._count += 1
        self.present |= composition > 0
        self._rows.append(np.append(composition, energy))
        if len(self._rows) == self._BLOCK:
            self._reduce()

    def _reduce(self) -> None:
        rows = np.array(self._rows).reshape(-1, self._total.shape[1])
        atoms = np.maximum(rows[:, :-1].sum(1, keepdims=True), 1)
        self._total = np.linalg.qr(np.concatenate([self._total, rows]), mode="r")
        self._per_atom = np.linalg.qr(np.concatenate([self._per_atom, rows / atoms]), mode="r")
        self._rows = []

    def result(self) -> tuple[np.ndarray | None, int, float | None]:
        """Energies of the types, eV; independent compositions; what is left of the energy per atom, RMS, eV."""
        if not self._count:
            return None, 0, None
        self._reduce()
        triangle, energies = self._total[:, :-1], self._total[:, -1]
        # the tolerance of NumPy's functions, for the matrix of all frames
        tolerance = np.finfo(float).eps * max(self._count, triangle.shape[1])
        shifts, _, rank, _ = np.linalg.lstsq(triangle, energies, rcond=tolerance)
        residual = np.linalg.norm(self._per_atom @ np.append(shifts, -1.0)) / np.sqrt(self._count)
        return shifts, int(rank), float(residual)


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
