"""Matrices of weights as the MLP kernels read them: scaled, split into two fp16 matrices, padded to whole tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.mlp_arithmetic import split_fp16

MAX_PARTS = 4
"""Most parts of an input that a kernel takes."""


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
        varies: w is split in every evaluation, so that one reduction and one kernel have to do: bound its largest number and the
            norms of rows and columns by the norm of w.

    Returns:
        hi and lo, fp16 [sum of padded widths, padded N], with w t = hi + lo for a power of two t; and fp32 [3, 1]: 1 / t,
        and bounds of the norms of w's columns and of its rows. (Inductor would write such a short vector anew in every
        evaluation; an array of two dimensions stays in memory.)
    """
    padded, columns = [pad(width) for width in widths], (pad_columns or pad)(w.shape[1])
    if varies and len(widths) <= MAX_PARTS:
        return split_varying(w.contiguous(), torch.linalg.vector_norm(w).reshape(1), widths, padded, columns)
    parts = [
        torch.nn.functional.pad(part, (0, columns - w.shape[1], 0, rows - part.shape[0]))
        for part, rows in zip(w.split(widths), padded, strict=True)
    ]
    # rounded up a little, as the kernels use norms as bounds
    largest = w.abs().max()
    norms = [torch.linalg.vector_norm(w, dim=d).max() * 1.0001 for d in (0, 1)]
    # 2^13 <= scale * largest < 2^14, made from bits, as exp2 of a GPU need not be exact
    exponent = (largest.clamp(1e-30).view(torch.int32) >> 23) & 255
    scale = ((267 - exponent) << 23).view(torch.float32)
    scaled = torch.cat(parts) * scale
    hi = _eleven_bits(scaled)
    return hi.to(torch.float16), (scaled - hi).to(torch.float16), torch.stack([1 / scale, *norms]).unsqueeze(1)


def _eleven_bits(x: Tensor) -> Tensor:
    """x rounded to the 11 significant bits of fp16, in fp32.

    A conversion to fp16 and back would not do: Inductor leaves out such a pair in a kernel of its own.
    """
    bits = x.view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)


@triton.jit
def split_kernel(
    w,
    norm,
    hi,
    lo,
    info,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    N: tl.constexpr,
    PADDED_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write hi and lo [P0 + P1 + P2 + P3, PADDED_N] of w [K0 + K1 + K2 + K3, N], and info [3]."""
    bound = tl.maximum(tl.load(norm) * 1.0001, 1e-30)  # rounded up a little
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    scale = ((267 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^13 <= bound scale < 2^14
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = place // PADDED_N, place % PADDED_N
    # the row of w that comes here; padded rows have none
    source = tl.where(row < K0, row, -1)
    source = tl.where((row >= P0) & (row < P0 + K1), row - P0 + K0, source)
    source = tl.where((row >= P0 + P1) & (row < P0 + P1 + K2), row - (P0 + P1) + (K0 + K1), source)
    last: tl.constexpr = P0 + P1 + P2
    source = tl.where((row >= last) & (row < last + K3), row - last + (K0 + K1 + K2), source)
    values = tl.load(w + source * N + column, mask=(source >= 0) & (column < N), other=0.0)
    high, low = split_fp16(values * scale)
    inside = row < last + P3
    tl.store(hi + place, high, mask=inside)
    tl.store(lo + place, low, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(info, ((exponent - 13) << 23).to(tl.float32, bitcast=True))
        tl.store(info + 1, bound)
        tl.store(info + 2, bound)


@triton_op("nequip_md::split_weights_triton", mutates_args={})
def split_varying(
    w: Tensor, norm: Tensor, widths: list[int], padded: list[int], columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`split` of a matrix that varies, with its Euclidean ``norm`` [1], in one kernel.

    Args:
        widths, padded: rows of each part, at most MAX_PARTS of them, and those of the result.
        columns: of the result.
    """
    shape = (sum(padded), columns)
    hi, lo = w.new_empty(shape, dtype=torch.float16), w.new_empty(shape, dtype=torch.float16)
    info = w.new_empty((3, 1))
    rows = [*widths, *[0] * (MAX_PARTS - len(widths))]
    places = [*padded, *[0] * (MAX_PARTS - len(widths))]
    sizes = {**{f"K{i}": k for i, k in enumerate(rows)}, **{f"P{i}": p for i, p in enumerate(places)}}
    block = 1024
    launcher.launch(
        split_kernel,
        (triton.cdiv(shape[0] * columns, block),),
        w,
        norm,
        hi,
        lo,
        info,
        **sizes,
        N=w.shape[1],
        PADDED_N=columns,
        BLOCK=block,
        num_warps=4,
    )
    return hi, lo, info
