"""Search for the batch and the frame on which a run diverged first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ase.io
import numpy as np
import torch
from torch import Tensor, distributed

from nequip_md.atomic import write_atomically
from nequip_md.training.data.samples import Sample
from nequip_md.training.parallel import are_connected
from nequip_md.training.steps.loss import Prediction

if TYPE_CHECKING:
    from nequip_md.training.data.data_module import AtomsData

_BATCH = 2**32  # more than there are frames: a batch and a frame in it are one number
_NO_FRAME = _BATCH - 1
_NEVER = 2**62


def first_failure(prediction: Prediction, batch: Sample) -> Tensor:
    """Place in a batch of the first frame whose energy or forces are not finite, int64 [1]; -1 if all are."""
    bad_atoms = ~torch.isfinite(prediction.forces).all(1)
    # phantom atoms come after the last structure's
    failures = torch.cat([~torch.isfinite(prediction.energy), bad_atoms.new_zeros(1)]).to(torch.int64)
    failures = failures.index_add(0, batch.graph.node_graph, bad_atoms.to(torch.int64)) > 0
    return torch.where(failures.any(), failures.to(torch.int64).argmax(), -1).reshape(1)


class FirstFailure:
    """Remembers the first batch of an epoch with something that is not finite, without waiting for the device."""

    def __init__(self):
        self._first: Tensor | None = None

    def reset(self) -> None:
        """Called as an epoch begins."""
        if self._first is not None:
            self._first.fill_(_NEVER)

    def update(self, prediction: Prediction, batch: Sample, number: int, values: Tensor | None = None) -> None:
        """Check the energies and forces of a batch.

        Args:
            number: of the batch in this epoch, from 0.
            values: others to check, such as the loss and the norm of its gradient [n].
        """
        self.add(first_failure(prediction, batch), batch, number, values)

    def add(self, place: Tensor, batch: Sample, number: int | Tensor, values: Tensor | None = None) -> None:
        """Take up what :func:`first_failure` has found in a batch, as :meth:`update` does; in place once there was a batch."""
        index = batch.index.index_select(0, place.clamp(min=0))
        found = torch.where(place < 0, _NEVER, number * _BATCH + index).squeeze(0)
        if values is not None:
            found = torch.where(torch.isfinite(values).all(), found, found.clamp(max=number * _BATCH + _NO_FRAME))
        if self._first is None:
            self._first = torch.full_like(found, _NEVER)
        self._first.copy_(self._first.minimum(found))

    def find(self, device: torch.device) -> tuple[int | None, int | None]:
        """Number of the first batch of all processes and index of the first frame in it whose prediction was not finite.

        All processes have to call this together. The frame is None where all predictions were finite; both are None if everything
        was.

        Args:
            device: where processes exchange tensors.
        """
        first = torch.tensor(_NEVER, device=device) if self._first is None else self._first
        if are_connected():
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
        batch, frame = divmod(int(first), _BATCH)
        return (None, None) if first == _NEVER else (batch, None if frame == _NO_FRAME else frame)


def describe_failure(failures: dict[str, FirstFailure], data: AtomsData, path: Path, device: torch.device) -> str:
    """Sentences about the frames, for the message of a run that has diverged. Their batch is written to a file.

    All processes have to call this together; the first one writes.

    Args:
        failures: the first failure in this epoch of the ``train`` and ``validation`` data, in the order in which they occurred.
        path: of the file, extended XYZ, with all frames of that step in all processes.
        device: where processes exchange tensors.
    """
    sentences = []
    for name, failure in failures.items():
        batch, frame = failure.find(device)
        if batch is None:
            continue
        if frame is not None:
            sentences.append(f"the first prediction that was not finite is of {data.names[name][frame]}")
        kind = "training" if name == "train" else name
        sentences.append(
            f"batch {batch + 1} of the {kind} data in this epoch was the first one, {_kept(data, name, batch, path)}"
        )
        break
    largest = np.nan_to_num(data.train.table.largest_force)
    frame = int(largest.argmax())
    sentences.append(
        f"the largest force of the training data, {largest[frame]:.4g} eV/Å, is in {data.names['train'][frame]}"
    )
    return "; ".join(sentences)


def _kept(data: AtomsData, name: str, batch: int, path: Path) -> str:
    """Write the frames of a step; what became of them, for a message."""
    indices = data.batches[name].frames(batch)
    frames = []
    for k in indices:
        atoms = getattr(data, name).labelled(k)
        if atoms is None:
            return f"with {_first_names(data.names[name], indices)}"
        atoms.info["frame"] = data.names[name][k]
        frames.append(atoms)
    if data.trainer.is_global_zero:
        content = io.StringIO()
        ase.io.write(content, frames, format="extxyz")
        try:
            write_atomically(path, content.getvalue().encode())
        except OSError as error:
            return f"but its frames could not be written to {path}: {error.strerror}"
    return f"and its frames are in {path}"


def describe_frames(batch: Sample, data: AtomsData) -> str:
    """The first frames of a training batch by name."""
    return _first_names(data.names["train"], batch.index.tolist())


def _first_names(names: Sequence[str], indices: Sequence[int], most: int = 3) -> str:
    more = len(indices) - most
    return ", ".join(names[k] for k in indices[:most]) + (f" and {more} more" if more > 0 else "")
