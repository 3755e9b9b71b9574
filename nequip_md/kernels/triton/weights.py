"""Matrices of weights as the MLP kernels read them: scaled, split into two fp16 matrices, padded to whole tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from nequip_md.kernels.triton import launcher


def multiple_of_64(width: int) -> int:
    """The same as :func:`launcher.tile_width` up to 64, above that the next multiple of 64."""
    return launcher.tile_width(width) if width <= 64 else 64 * triton.cdiv(width, 64)


def dense_columns(width: int) -> int:
    """Number of columns that :func:`dense` computes: the width of a tile up to 256, above that a multiple of 256."""
    return launcher.tile_width(width) if width <= 256 else 256 * triton.cdiv(width, 256)


def split(
    w: Tensor,
    widths: list[int],
    pad: Callable[[int], int] = launcher.tile_width,
    pad_columns: Callable[[int], int] | None = None,
    varies: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale a matrix and split it into two fp16 matrices, padded with zeros to the kernels' tiles.

    Args:
        w: [sum of widths, N], fp32.
        widths: rows that belong to each part of the input.
        pad: gives the padded width, for the rows and, unless ``pad_columns`` is given, for the columns.
        varies: w is split in every evaluation, so that one reduction has to do: bound the norms of rows and columns by the norm of w.

    Returns:
        hi and lo, fp16 [sum of padded widths, padded N], with w t = hi + lo for a power of two t; and fp32 [3, 1]: 1 / t,
        and bounds of the norms of w's columns and of its rows. (Inductor would write such a short vector anew in every
        evaluation; an array of two dimensions stays in memory.)
    """
    columns = (pad_columns or pad)(w.shape[1]) - w.shape[1]
    padded = [
        torch.nn.functional.pad(part, (0, columns, 0, pad(part.shape[0]) - part.shape[0])) for part in w.split(widths)
    ]
    # rounded up a little, as the kernels use norms as bounds
    if varies:
        largest = torch.linalg.vector_norm(w) * 1.0001
        norms = [largest, largest]
    else:
        largest = w.abs().max()
        norms = [torch.linalg.vector_norm(w, dim=d).max() * 1.0001 for d in (0, 1)]
    scale = torch.exp2(13 - torch.floor(torch.log2(largest.clamp(1e-30))))
    scaled = torch.cat(padded) * scale
    hi = _eleven_bits(scaled)
    return hi.to(torch.float16), (scaled - hi).to(torch.float16), torch.stack([1 / scale, *norms]).unsqueeze(1)


def _eleven_bits(x: Tensor) -> Tensor:
    """x rounded to the 11 significant bits of fp16, in fp32.

    A conversion to fp16 and back would not do: Inductor leaves out such a pair in a kernel of its own.
    """
    bits = x.view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)
