"""Layout of weights for the Hopper kernels: blocks of 64 by 64 fp16 numbers, swizzled as the tensor cores expect them."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 64
"""Rows and columns of a block of weights."""


_PIECE = 8
"""Adjacent fp16 numbers that the swizzle moves together."""


def num_blocks(width: int) -> int:
    return -(-width // SIDE)


def padded_width(width: int) -> int:
    return SIDE * num_blocks(width)


def _swizzle(blocks: Tensor) -> Tensor:
    """Move the j-th piece of row n to place j xor (n mod 8). The function is its own inverse."""
    rows, pieces = torch.arange(SIDE, device=blocks.device), torch.arange(SIDE // _PIECE, device=blocks.device)
    places = (pieces.unsqueeze(0) ^ (rows % 8).unsqueeze(1)).unsqueeze(-1)
    split = blocks.unflatten(-1, (SIDE // _PIECE, _PIECE))
    return split.gather(-2, places.expand(split.shape)).flatten(-2)


def _permute(x: Tensor, dim: int) -> Tensor:
    """Permute every 16 columns: 4 q + 2 b + e goes to 8 b + 2 q + e (q < 4, b < 2, e < 2), where a thread holds it in an accumulator."""
    dim %= x.dim()
    return x.unflatten(dim, (-1, 4, 2, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def _permute_back(x: Tensor, dim: int) -> Tensor:
    dim %= x.dim()
    return x.unflatten(dim, (-1, 2, 4, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def to_blocks(parts: Tensor, after_product: bool) -> Tensor:
    """Divide a matrix into blocks.

    Args:
        parts: its high and low parts, or the high part alone, fp16 [1 or 2, K, N]; K and N are multiples of 64.
        after_product: the left operand of a product with the matrix is an accumulator, the result of another product.

    Returns:
        [K / 64, N / 64, 1 or 2, 64 (n), 64 (k)].
    """
    parts = _permute(parts, 2)
    if after_product:
        parts = _permute(parts, 1)
    count, rows, columns = parts.shape
    blocks = parts.reshape(count, rows // SIDE, SIDE, columns // SIDE, SIDE)
    return _swizzle(blocks.permute(1, 3, 0, 4, 2).contiguous())


def from_blocks(blocks: Tensor, after_product: bool) -> Tensor:
    """The inverse of :func:`to_blocks`, high and low parts added: fp32 [K, N]."""
    summed = _swizzle(blocks).float().sum(dim=2)
    matrix = _permute_back(summed.permute(0, 3, 1, 2).reshape(blocks.shape[0] * SIDE, blocks.shape[1] * SIDE), 1)
    return _permute_back(matrix, 0) if after_product else matrix


def join(first: Tensor, second: Tensor) -> Tensor:
    """Order blocks [K, C, ...] and [C, N, ...] as a kernel multiplies by both: for each of the C chunks of hidden columns, the blocks
    of the first matrix, then those of the second."""
    return torch.cat([first.transpose(0, 1), second], dim=1).flatten(0, 1)


def split_joined(blocks: Tensor, first: int, chunks: int, second: int) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`join` for matrices of [first, chunks] and [chunks, second] blocks."""
    both = blocks.unflatten(0, (chunks, first + second))
    return both[:, :first].transpose(0, 1), both[:, first:]


def remove_padding(w: Tensor, widths: list[int], columns: int) -> Tensor:
    parts = [part[:k] for part, k in zip(w.split([padded_width(k) for k in widths]), widths)]
    return torch.cat(parts)[:, :columns]
