"""Tensors in one buffer, which a process or a device takes at once: each copy, and each file of shared memory, has its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_NUMPY = {torch.float64: np.dtype(np.float64), torch.int64: np.dtype(np.int64)}
_ALIGNMENT = 64
"""Bytes; tensors in a buffer begin at multiples, as those do that PyTorch allocates."""


@dataclass(frozen=True)
class Layout:
    """The places of tensors in a buffer.

    Attributes:
        types: of the tensors in their order.
        shapes: of the tensors.
    """

    types: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layout:
        return cls(tuple(t.dtype for t in tensors), tuple(tuple(t.shape) for t in tensors))

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """First byte of each tensor, and the one after its last."""
        places, start = [], 0
        for dtype, shape in zip(self.types, self.shapes, strict=True):
            end = start + dtype.itemsize * math.prod(shape)
            places.append((start, end))
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
        return places

    def new_buffer(self) -> Tensor:
        """Memory for the tensors, uint8 [n]; what it holds is undefined."""
        return torch.empty(self.places[-1][1], dtype=torch.uint8)

    def arrays(self, buffer: Tensor) -> list[np.ndarray]:
        """The tensors in a buffer in the memory of the processor, as arrays in its memory."""
        content = buffer.numpy()
        parts = zip(self.places, self.types, self.shapes, strict=True)
        return [np.ndarray(shape, _NUMPY[dtype], content, start) for (start, _), dtype, shape in parts]

    def tensors(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a buffer, in its memory."""
        if buffer.device.type == "cpu":  # NumPy's views cost less than PyTorch's
            return [torch.from_numpy(array) for array in self.arrays(buffer)]
        parts = zip(self.places, self.types, self.shapes, strict=True)
        return [buffer[start:end].view(dtype).view(shape) for (start, end), dtype, shape in parts]


def joined(tensors: Sequence[Tensor]) -> tuple[Tensor, Layout]:
    """A buffer with copies of some tensors in the memory of the processor."""
    layout = Layout.of(tensors)
    buffer = layout.new_buffer()
    for array, tensor in zip(layout.arrays(buffer), tensors, strict=True):
        array[...] = tensor.numpy()
    return buffer, layout
