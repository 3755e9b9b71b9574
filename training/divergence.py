"""Search for the frame on which a run diverged first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nequip_md.training.loss import Prediction
from nequip_md.training.samples import Sample

if TYPE_CHECKING:
    from nequip_md.training.data import AtomsData


def first_failure(prediction: Prediction, batch: Sample) -> Tensor:
    """Place in a batch of the first frame whose energy or forces are not finite, int64 [1]; -1 if all are."""
    bad_atoms = ~torch.isfinite(prediction.forces).all(1)
    # phantom atoms come after the last structure's
    failures = torch.cat([~torch.isfinite(prediction.energy), bad_atoms.new_zeros(1)]).to(torch.int64)
    failures = failures.index_add(0, batch.graph.node_graph, bad_atoms.to(torch.int64)) > 0
    return torch.where(failures.any(), failures.to(torch.int64).argmax(), -1).reshape(1)


class FirstFailure:
    """Remembers the first frame whose energy or forces were not finite, without waiting for the device."""

    def __init__(self):
        self._index: Tensor | None = None

    def update(self, prediction: Prediction, batch: Sample) -> None:
        """Check the predictions of a batch."""
        self.add(first_failure(prediction, batch), batch)

    def add(self, place: Tensor, batch: Sample) -> None:
        """Take what :func:`first_failure` has found in a batch."""
        if self._index is None:
            self._index = torch.full_like(place, -1)
        found = torch.where(place < 0, -1, batch.index.index_select(0, place.clamp(min=0)))
        self._index.copy_(torch.where(self._index < 0, found, self._index))

    @property
    def index(self) -> int | None:
        """The frame's index in its data set; None if every frame was finite."""
        return None if self._index is None or self._index < 0 else int(self._index)


def describe_failure(failures: dict[str, FirstFailure], data: AtomsData) -> str:
    """Sentences about the frames, for the message of a run that has diverged.

    Args:
        failures: the first failure of each data set, in the order in which they occurred.
    """
    sentences = []
    for name, failure in failures.items():
        if failure.index is not None:
            sentences.append(f"the first prediction that was not finite is of {data.names[name][failure.index]}")
            break
    largest = np.nan_to_num(data.train.table.largest_force)
    frame = int(largest.argmax())
    sentences.append(
        f"the largest force of the training data, {largest[frame]:.4g} eV/Å, is in {data.names['train'][frame]}"
    )
    return "; ".join(sentences)


def describe_frames(batch: Sample, data: AtomsData, most: int = 3) -> str:
    """The first frames of a training batch by name."""
    names = [data.names["train"][k] for k in batch.index[:most].tolist()]
    more = len(batch.index) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
