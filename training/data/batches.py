"""Which frames make each batch of each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np


class Batches:
    """Indices of the frames of each batch that one process takes, for a ``DataLoader``'s ``batch_sampler``.

    All processes form the same batches of all frames and take one after the other in turn, so that each takes as many as the
    others; the last ones may get empty batches. The order depends on seed and epoch alone.

    A batch ends before the frame with which it would exceed a limit. A frame that exceeds one alone is a batch.

    Args:
        atoms, edges: of each frame.
        limits: most frames, atoms and edges of a batch; None, or none given, means no limit.
        seed: of the order in each epoch; None keeps the frames in their order.
        passes: how often an epoch goes over all frames, each time in another order.
        process, processes: number of this process, and of all of them.
    """

    def __init__(
        self,
        atoms: Sequence[int],
        edges: Sequence[int],
        limits: Sequence[int | None],
        *,
        seed: int | None = None,
        passes: int = 1,
        process: int = 0,
        processes: int = 1,
    ):
        self.sizes = np.stack([np.ones(len(atoms)), np.asarray(atoms), np.asarray(edges)], axis=1)
        self.limits = np.array([np.inf if m is None else m for m in (*limits, None, None, None)[:3]])
        self.seed, self.passes, self.process, self.processes = seed, passes, process, processes
        self.varies = seed is not None and bool(np.isfinite(self.limits[1:]).any())
        self.epoch = 0
        self.left_out = (-1, 0)
        # Lightning looks for set_epoch there
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning as an epoch begins."""
        self.epoch = epoch

    def leave_out(self, batches: int, epoch: int) -> None:
        """Leave out the first batches of each process in one epoch, which a resumed run has had before."""
        self.left_out = (epoch, batches)

    def frames(self, number: int) -> list[int]:
        """The frames of the batches that all processes take in one step of this epoch; steps are numbered from 0."""
        batches = self.all_batches()[number * self.processes : (number + 1) * self.processes]
        return [frame for batch in batches for frame in batch]

    def all_batches(self) -> list[list[int]]:
        """The batches of all processes in this epoch."""
        count = len(self.sizes)
        if self.seed is None:
            order = np.tile(np.arange(count), self.passes)
        else:
            random = np.random.default_rng([self.seed, self.epoch])
            order = np.concatenate([random.permutation(count) for _ in range(self.passes)])
        batches: list[list[int]] = []
        total = self.limits
        for frame in order.tolist():
            total = total + self.sizes[frame]
            if (total > self.limits).any():
                batches.append([])
                total = self.sizes[frame]
            batches[-1].append(frame)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        # a generator, because Lightning makes an iterator before it sets the epoch
        batches = self.all_batches()
        batches += [[]] * (-len(batches) % self.processes)
        epoch, first = self.left_out
        yield from batches[self.process :: self.processes][first if epoch == self.epoch else 0 :]

    def __len__(self) -> int:
        if self.varies:
            raise TypeError("batches that are limited by atoms or edges are not as many in every epoch")
        return self._length

    @cached_property
    def _length(self) -> int:
        return -(-len(self.all_batches()) // self.processes)
