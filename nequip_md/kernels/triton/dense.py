"""Products with one matrix, and with one matrix for each order l (:mod:`nequip_md.ops.mlp`).

:mod:`.mlp_arithmetic` describes the arithmetic.
"""

from __future__ import annotations

from math import isqrt

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher, tiles, weights
from nequip_md.kernels.triton.mlp_arithmetic import (
    load_rows,
    power_of_two,
    product,
    silu_and_derivative,
    split_fp16,
    store_fragment,
    unscale_factor,
    weight_tile,
)


@triton.jit
def dense_kernel(
    x,
    w_hi,
    w_lo,
    w_info,
    out,
    d,
    count,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PADDED_N: tl.constexpr,
    PADDED_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    THEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute out [count, N] = x [count, K] W, with W stored as [PADDED_K, PADDED_N].

    With ``TRANSPOSED`` it is x W^T, with W stored as [PADDED_N, PADDED_K]. With ``THEN`` "silu", out is silu of the product, and
    d [count, N] is silu'.
    """
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    column0 = tl.program_id(1) * BLOCK_N
    square = tl.zeros([ROWS], dtype=tl.float32)
    for k0 in tl.static_range(0, PADDED_K, CHUNK):
        part = load_rows(x, row0, count, K, k0, ROWS, CHUNK)
        square += tl.sum(part * part, axis=1)
    scale = power_of_two(tl.sqrt(square))
    total = tl.zeros([ROWS, BLOCK_N], dtype=tl.float32)
    for k0 in range(0, PADDED_K, CHUNK):
        part = load_rows(x, row0, count, K, k0, ROWS, CHUNK)
        x_hi, x_lo = split_fp16(part * scale[:, None])
        if TRANSPOSED:
            b_hi = tl.trans(weight_tile(w_hi, column0, BLOCK_N, k0, CHUNK, PADDED_K))
            b_lo = tl.trans(weight_tile(w_lo, column0, BLOCK_N, k0, CHUNK, PADDED_K))
        else:
            b_hi = weight_tile(w_hi, k0, CHUNK, column0, BLOCK_N, PADDED_N)
            b_lo = weight_tile(w_lo, k0, CHUNK, column0, BLOCK_N, PADDED_N)
        total = product(x_hi, x_lo, b_hi, b_lo, total, PRODUCTS)
    total *= unscale_factor(scale, w_info, K, PRODUCTS)[:, None]
    if THEN == "silu":
        total, derivative = silu_and_derivative(total)
        store_fragment(d, derivative, row0, count, N, column0, ROWS, BLOCK_N)
    store_fragment(out, total, row0, count, N, column0, ROWS, BLOCK_N)


@triton.jit
def mix_kernel(
    x,
    w_hi,
    w_lo,
    w_info,
    out,
    N,
    K: tl.constexpr,
    U: tl.constexpr,
    M: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute out [N, M, U] = x [N, M, K] W_l with a matrix for each order l: W [L, PADDED_K, PADDED_U], or its transpose.

    The second index of the grid is l, whose rows are the pairs (n, m) with m in l; the third is a block of columns.
    """
    l = tl.program_id(1)
    column0 = tl.program_id(2) * BLOCK_U
    width = 2 * l + 1
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    if row0 >= N * width:  # the grid is that of the last order, which has the most rows
        return
    row = row0 + tl.arange(0, ROWS)
    at = (row // width) * M + l * l + row % width
    valid = (row // width < N)[:, None]
    square = tl.zeros([ROWS], dtype=tl.float32)
    for k0 in tl.static_range(0, PADDED_K, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        part = tl.load(x + at[:, None] * K + k[None, :], mask=valid & (k < K)[None, :], other=0.0)
        square += tl.sum(part * part, axis=1)
    scale = power_of_two(tl.sqrt(square))
    total = tl.zeros([ROWS, BLOCK_U], dtype=tl.float32)
    for k0 in range(0, PADDED_K, CHUNK):
        k = k0 + tl.arange(0, CHUNK)
        part = tl.load(x + at[:, None] * K + k[None, :], mask=valid & (k < K)[None, :], other=0.0)
        x_hi, x_lo = split_fp16(part * scale[:, None])
        if TRANSPOSED:
            b_hi = tl.trans(weight_tile(w_hi, l * PADDED_U + column0, BLOCK_U, k0, CHUNK, PADDED_K))
            b_lo = tl.trans(weight_tile(w_lo, l * PADDED_U + column0, BLOCK_U, k0, CHUNK, PADDED_K))
        else:
            b_hi = weight_tile(w_hi, l * PADDED_K + k0, CHUNK, column0, BLOCK_U, PADDED_U)
            b_lo = weight_tile(w_lo, l * PADDED_K + k0, CHUNK, column0, BLOCK_U, PADDED_U)
        total = product(x_hi, x_lo, b_hi, b_lo, total, PRODUCTS)
    total *= unscale_factor(scale, w_info, K, PRODUCTS)[:, None]
    u = column0 + tl.arange(0, BLOCK_U)
    tl.store(out + at[:, None] * U + u[None, :], total, mask=valid & (u < U)[None, :])


def _dense(
    x: Tensor,
    w: tuple[Tensor, Tensor, Tensor],
    d: Tensor,
    inner: int,
    outer: int,
    transposed: bool,
    products: int,
    then: str,
) -> Tensor:
    count, padded, rows = x.shape[0], weights.dense_columns(outer), 128
    out = x.new_empty((count, outer))
    block = min(padded, 256)
    launcher.launch(
        dense_kernel,
        (triton.cdiv(count, rows), padded // block),
        x,
        *w,
        out,
        d,
        count,
        K=inner,
        N=outer,
        BLOCK_N=block,
        PADDED_N=padded,
        PADDED_K=weights.multiple_of_64(inner),
        TRANSPOSED=transposed,
        THEN=then,
        ROWS=rows,
        CHUNK=min(32, weights.multiple_of_64(inner)),
        PRODUCTS=products,
        num_warps=8 if block >= 128 else 4,
        num_stages=3,
    )
    return out


@triton_op("nequip_md::dense_triton", mutates_args={})
def dense(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, inner: int, outer: int, transposed: bool, products: int
) -> Tensor:
    return _dense(x, (w_hi, w_lo, w_info), x, inner, outer, transposed, products, "")


@triton_op("nequip_md::dense_silu_triton", mutates_args={})
def dense_silu(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, inner: int, outer: int, products: int
) -> list[Tensor]:
    d = x.new_empty((x.shape[0], outer), dtype=tiles.derivative_dtype(products))
    return [_dense(x, (w_hi, w_lo, w_info), d, inner, outer, False, products, "silu"), d]


@triton_op("nequip_md::mix_orders_triton", mutates_args={})
def mix_orders(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, outer: int, transposed: bool, products: int
) -> Tensor:
    count, components, inner = x.shape
    out = x.new_empty((count, components, outer))
    orders, rows, block = isqrt(components), 32, min(launcher.tile_width(outer), 64)
    grid = (triton.cdiv(count * (2 * orders - 1), rows), orders, launcher.tile_width(outer) // block)
    launcher.launch(
        mix_kernel,
        grid,
        x,
        w_hi,
        w_lo,
        w_info,
        out,
        count,
        K=inner,
        U=outer,
        M=components,
        PADDED_K=launcher.tile_width(inner),
        PADDED_U=launcher.tile_width(outer),
        BLOCK_U=block,
        TRANSPOSED=transposed,
        ROWS=rows,
        CHUNK=min(64, launcher.tile_width(inner)),
        PRODUCTS=products,
        num_warps=4,
        num_stages=3,
    )
    return out
