"""How the kernels for Hopper read weights: blocks of 64 by 64 halves, swizzled as the tensor cores expect them."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 64
"""Rows and columns of a block of weights."""


_PIECE = 8
"""Halves that the swizzle moves together."""


def num_blocks(width: int) -> int:
    return -(-width // SIDE)


def padded_width(width: int) -> int:
    return SIDE * num_blocks(width)


def _swizzle(blocks: Tensor) -> Tensor:
    """The j-th piece of row n goes to place j xor n mod 8; its own inverse."""
    rows, pieces = torch.arange(SIDE, device=blocks.device), torch.arange(SIDE // _PIECE, device=blocks.device)
    places = (pieces.unsqueeze(0) ^ (rows % 8).unsqueeze(1)).unsqueeze(-1)
    split = blocks.unflatten(-1, (SIDE // _PIECE, _PIECE))
    return split.gather(-2, places.expand(split.shape)).flatten(-2)


def _exchange(x: Tensor, dim: int) -> Tensor:
    """Permute every 16 columns: 4 q + 2 b + e go to 8 b + 2 q + e (q < 4, b < 2, e < 2): where a thread has them in a result."""
    dim %= x.dim()
    return x.unflatten(dim, (-1, 4, 2, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def _exchange_back(x: Tensor, dim: int) -> Tensor:
    dim %= x.dim()
    return x.unflatten(dim, (-1, 2, 4, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def to_blocks(halves: Tensor, exchanged: bool) -> Tensor:
    """[1 or 2, K, N], multiples of 64, as [K / 64, N / 64, 1 or 2, 64 (n), 64 (k)].

    Args:
        exchanged: the left operand of a product with them is the result of another.
    """
    halves = _exchange(halves, 2)
    if exchanged:
        halves = _exchange(halves, 1)
    count, rows, columns = halves.shape
    blocks = halves.reshape(count, rows // SIDE, SIDE, columns // SIDE, SIDE)
    return _swizzle(blocks.permute(1, 3, 0, 4, 2).contiguous())


def from_blocks(blocks: Tensor, exchanged: bool) -> Tensor:
    """The inverse, summed over the halves: [K, N], fp32."""
    summed = _swizzle(blocks).float().sum(dim=2)
    matrix = _exchange_back(summed.permute(0, 3, 1, 2).reshape(blocks.shape[0] * SIDE, blocks.shape[1] * SIDE), 1)
    return _exchange_back(matrix, 0) if exchanged else matrix


def join(first: Tensor, second: Tensor) -> Tensor:
    """Blocks [K, C, ...] and [C, N, ...] in the order of a product by both, chunk by chunk of what lies between."""
    return torch.cat([first.transpose(0, 1), second], dim=1).flatten(0, 1)


def split_joined(blocks: Tensor, first: int, chunks: int, second: int) -> tuple[Tensor, Tensor]:
    both = blocks.unflatten(0, (chunks, first + second))
    return both[:, :first].transpose(0, 1), both[:, first:]


def remove_padding(w: Tensor, widths: list[int], columns: int) -> Tensor:
    parts = [part[:k] for part, k in zip(w.split([padded_width(k) for k in widths]), widths)]
    return torch.cat(parts)[:, :columns]
