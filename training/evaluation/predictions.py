"""Predictions of a model beside the labels of a data set, as NumPy arrays: what errors are grouped by and plotted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from nequip_md.training.data.samples import Sample
from nequip_md.training.steps.loss import Prediction


@dataclass(frozen=True)
class Predictions:
    """Predictions and labels of F frames with N atoms in all. A label that a frame lacks is NaN.

    Attributes:
        type_names: of the model.
        num_atoms: atoms of each frame, int64 [F].
        types: model type of each atom, int64 [N].
        energy, energy_label: eV, float64 [F].
        forces, force_label: eV/angstrom, float64 [N, 3].
        stress, stress_label: eV/angstrom^3, positive under tension, float64 [F, 3, 3]; ``stress`` is NaN for frames
            whose cell has no volume, and where it was not computed.
    """

    type_names: tuple[str, ...]
    num_atoms: np.ndarray
    types: np.ndarray
    energy: np.ndarray
    energy_label: np.ndarray
    forces: np.ndarray
    force_label: np.ndarray
    stress: np.ndarray
    stress_label: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.num_atoms)

    @property
    def frame_of_atom(self) -> np.ndarray:
        """Frame that each atom belongs to, int64 [N]."""
        return np.repeat(np.arange(self.num_frames), self.num_atoms)

    def composition(self) -> np.ndarray:
        """Atoms of each type in each frame, int64 [F, number of types]."""
        counts = np.zeros((self.num_frames, len(self.type_names)), dtype=np.int64)
        np.add.at(counts, (self.frame_of_atom, self.types), 1)
        return counts


class PredictionCollector:
    """Gathers the predictions and labels of one batch after another on the CPU."""

    def __init__(self, type_names: Sequence[str]):
        self.type_names = tuple(type_names)
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, prediction: Prediction, batch: Sample) -> None:
        """Take up a batch of structures with what was predicted for it."""
        stress = prediction.stress
        if stress is None:
            stress = torch.full_like(batch.stress, torch.nan)
        # the volume is infinite where the cell has none
        stress = torch.where(torch.isfinite(batch.volume).reshape(-1, 1, 1), stress, torch.nan)
        tensors = (
            batch.num_atoms,
            batch.graph.node_types,
            prediction.energy,
            batch.energy,
            prediction.forces,
            batch.forces,
            stress,
            batch.stress,
        )
        self._parts.append(tuple(t.detach().cpu().numpy() for t in tensors))

    def gather(self) -> None:
        """Take up what the other processes of a run have; all of them call it."""
        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, self._parts)
            self._parts = [part for one in parts for part in one]

    def finish(self) -> Predictions:
        """All batches together, in the order in which they came; there must be one at least."""
        return Predictions(self.type_names, *(np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)))
