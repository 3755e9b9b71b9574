"""The gradient of a product x W by W, which sums over all rows of x.

:mod:`.mlp_arithmetic` describes the arithmetic. Here the sum is over rows, so a row's scale cannot be undone after it. A row of x is multiplied by its
power of two, and that of the other factor by the inverse, which leaves their product. Then one more power of two serves for
all rows of a tile of the other factor. What a row contributes is therefore as accurate as that of the tile's largest row needs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.mlp_arithmetic import (
    inverse_power_of_two,
    load_rows,
    product,
    split_fp16,
)

ROWS = 64
"""Rows of a tile."""


@triton.jit
def scale_of(largest):
    """The power of two s with 2^14 <= s largest < 2^15, at most 2^126."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    return (tl.minimum(tl.maximum(268 - exponent, 1), 253) << 23).to(tl.float32, bitcast=True)


@triton.jit
def dense_weight_kernel(
    x,
    g,
    out,
    count,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """out [programs, K, N]: each program's part of the sum over rows of x [count, K]^T g [count, N].

    The first index of the grid is a tile of columns of x and g, the second a range of rows.
    """
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    k0 = tl.program_id(0) // columns * BLOCK_K
    n0 = tl.program_id(0) % columns * BLOCK_N
    part = tl.program_id(1).to(tl.int64)
    share = tl.cdiv(tl.cdiv(count, ROWS), tl.num_programs(1)) * ROWS
    end = tl.minimum((part + 1) * share, count)
    total = tl.zeros([BLOCK_K, BLOCK_N], dtype=tl.float32)
    for row0 in range(part * share, end, ROWS):
        a = load_rows(x, row0, end, K, k0, ROWS, BLOCK_K)
        b = load_rows(g, row0, end, N, n0, ROWS, BLOCK_N)
        scale = scale_of(tl.max(tl.abs(a), axis=1))
        b *= (inverse_power_of_two(scale) * 16384.0)[:, None]  # about the row of b times the size of that of a
        common = scale_of(tl.max(tl.max(tl.abs(b), axis=1), axis=0))
        a_hi, a_lo = split_fp16(a * scale[:, None])
        b_hi, b_lo = split_fp16(b * common)
        sums = tl.zeros([BLOCK_K, BLOCK_N], dtype=tl.float32)
        sums = product(tl.trans(a_hi), tl.trans(a_lo), b_hi, b_lo, sums, PRODUCTS)
        total += sums * (inverse_power_of_two(common) / 16384.0)
    k = k0 + tl.arange(0, BLOCK_K)
    n = n0 + tl.arange(0, BLOCK_N)
    inside = (k < K)[:, None] & (n < N)[None, :]
    tl.store(out + part * K * N + k[:, None] * N + n[None, :], total, mask=inside)


def tile_columns(width: int) -> int:
    return min(128, launcher.tile_width(width))


@triton_op("nequip_md::dense_weight_triton", mutates_args={})
def dense_weight(x: Tensor, g: Tensor, products: int) -> Tensor:
    """Parts of x^T g, [parts, K, N]; a sum over the first index remains."""
    inner, outer = x.shape[1], g.shape[1]
    block_k, block_n = tile_columns(inner), tile_columns(outer)
    tiles = triton.cdiv(inner, block_k) * triton.cdiv(outer, block_n)
    parts = max(1, 2 * launcher.MULTIPROCESSORS // tiles)
    out = x.new_empty((parts, inner, outer))
    launcher.launch(
        dense_weight_kernel,
        (tiles, parts),
        x,
        g,
        out,
        x.shape[0],
        K=inner,
        N=outer,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        ROWS=ROWS,
        PRODUCTS=products,
        num_warps=8 if block_k * block_n > 64 * 64 else 4,
        num_stages=3,
    )
    return out
