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
        self.num_frames, self.count = len(atoms), passes * len(atoms)
        frames, *others = (*limits, None, None, None)[:3]
        self.most_frames = self.count if frames is None else frames
        self.limited = [(np.asarray(n), most) for n, most in zip((atoms, edges), others) if most is not None]
        self.seed, self.passes, self.process, self.processes = seed, passes, process, processes
        self.varies = seed is not None and bool(self.limited)
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
        order = self._order()
        bounds = self._bounds(order)
        first, last = (min(step * self.processes, len(bounds) - 1) for step in (number, number + 1))
        return order[bounds[first] : bounds[last]].tolist()

    def _order(self) -> np.ndarray:
        """All frames in their order in this epoch, int64 [passes n]."""
        if self.seed is None:
            return np.tile(np.arange(self.num_frames), self.passes)
        random = np.random.default_rng([self.seed, self.epoch])
        return np.concatenate([random.permutation(self.num_frames) for _ in range(self.passes)])

    def _bounds(self, order: np.ndarray) -> list[int]:
        """The place in the order at which each batch of all processes begins, and that after the last one."""
        places = np.arange(self.count)
        # of a batch that would begin at each place: the one at which the next begins
        following = np.minimum(places + max(self.most_frames, 1), self.count)
        for sizes, most in self.limited:
            sums = np.zeros(self.count + 1, dtype=np.int64)
            np.cumsum(sizes[order], out=sums[1:])
            np.minimum(following, np.searchsorted(sums, sums[:-1] + most, side="right") - 1, out=following)
        np.maximum(following, places + 1, out=following)
        bounds = [0]
        while bounds[-1] < self.count:
            bounds.append(following.item(bounds[-1]))
        return bounds

    def __iter__(self) -> Iterator[list[int]]:
        # a generator, because Lightning makes an iterator before it sets the epoch
        order = self._order()
        bounds = self._bounds(order)
        epoch, first = self.left_out
        first = self.processes * (first if epoch == self.epoch else 0)
        for batch in range(first + self.process, self.processes * self._steps(len(bounds) - 1), self.processes):
            # the last batches of a process may be empty
            yield order[bounds[batch] : bounds[batch + 1]].tolist() if batch + 1 < len(bounds) else []

    def _steps(self, batches: int) -> int:
        return -(-batches // self.processes)

    def __len__(self) -> int:
        if self.varies:
            raise TypeError("batches that are limited by atoms or edges are not as many in every epoch")
        return self._length

    @cached_property
    def _length(self) -> int:
        return self._steps(len(self._bounds(self._order())) - 1)
