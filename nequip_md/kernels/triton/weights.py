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
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale a matrix and split it into two fp16 matrices, padded with zeros to the kernels' tiles.

    Args:
        w: [sum of widths, N], fp32.
        widths: rows that belong to each part of the input.
        pad: gives the padded width, for the rows and, unless ``pad_columns`` is given, for the columns.

    Returns:
        hi and lo, fp16 [sum of padded widths, padded N], with w t = hi + lo for a power of two t; and fp32 [3, 1]: 1 / t, the
        largest norm of a column of w, the largest norm of a row. (Inductor would write such a short vector anew in every
        evaluation; an array of two dimensions stays in memory.)
    """
    columns = (pad_columns or pad)(w.shape[1]) - w.shape[1]
    padded = [
        torch.nn.functional.pad(part, (0, columns, 0, pad(part.shape[0]) - part.shape[0])) for part in w.split(widths)
    ]
    scale = torch.exp2(13 - torch.floor(torch.log2(w.abs().max().clamp(1e-30))))
    scaled = torch.cat(padded) * scale
    hi = scaled.to(torch.float16)
    lo = (scaled - hi).to(torch.float16)
    # rounded up a little, as the kernels use these norms as bounds
    norms = [torch.linalg.vector_norm(w, dim=d).max() * 1.0001 for d in (0, 1)]
    return hi, lo, torch.stack([1 / scale, *norms]).unsqueeze(1)
