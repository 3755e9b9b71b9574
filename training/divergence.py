"""Search for the frame on which a run diverged first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nequip_md.training.data import AtomsData
from nequip_md.training.loss import Prediction
from nequip_md.training.samples import Sample


class FirstFailure:
    """Remembers the first frame whose energy or forces were not finite, without waiting for the device."""

    def __init__(self):
        self._index: Tensor | None = None

    def update(self, prediction: Prediction, batch: Sample) -> None:
        """Check the predictions of a batch."""
        bad_atoms = ~torch.isfinite(prediction.forces).all(1)
        frame = torch.arange(len(batch.index), device=bad_atoms.device)
        frame = frame.repeat_interleave(batch.num_atoms, output_size=len(bad_atoms))
        failures = (~torch.isfinite(prediction.energy)).to(torch.int64).index_add(0, frame, bad_atoms.to(torch.int64))
        first = batch.index.index_select(0, (failures > 0).to(torch.int64).argmax().reshape(1))
        found = torch.where(failures.any(), first, -1)
        self._index = found if self._index is None else torch.where(self._index < 0, found, self._index)

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
