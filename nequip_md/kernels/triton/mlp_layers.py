"""Layers of an MLP one by one; arrays between them are stored as scaled fp16 parts.

A layer that is too wide for the fused kernels is a matrix product of its own (:mod:`.mlp_arithmetic` describes the arithmetic). To keep
the tensor cores busy, both operands must be read from memory as they are multiplied. So each layer writes its output scaled
and split for the next one, as three arrays:

``x``
    fp16 [2, E, K], high and low parts, or [1, E, K] with one product: x s = hi + lo. Parts of an input are side by side, each
    padded with zeros to a multiple of the depth of the products.
``scale``
    fp32 [E], the power of two s of each row.
``squares``
    fp32 [blocks, E], the sum of squares of x over each block of columns. The root of their sum bounds the output of the next layer.

The three products of parts are one sum over three times the inner dimension, so their loop is that of an ordinary matrix product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher, tiles
from nequip_md.kernels.triton.mlp_arithmetic import (
    fragment,
    fragment_columns,
    fragment_rows,
    load_fragment,
    load_parts,
    load_rows,
    power_of_two,
    silu_and_derivative,
    split_fp16,
    store_fragment,
    unscale_factor,
)


@triton.jit
def wide(count, row0):
    """``count`` in 64 bits, as ``row0`` is. While an export analyses the kernel, ``count`` is a Python number without a method ``to``."""
    return row0 * 0 + count


@triton.jit
def store_part(
    x,
    part,
    scale,
    row0,
    count,
    start: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Store a part [ROWS, B] of the input, zero in its padding, as columns ``start`` to ``start + P - 1`` of x."""
    hi, lo = split_fp16(part * scale[:, None])
    row, column = tl.arange(0, ROWS), tl.arange(0, B)
    inside = (row < count - row0)[:, None] & (column < P)[None, :]
    at = row0 * WIDTH + row[:, None] * WIDTH + (start + column)[None, :]
    tl.store(x + at, hi, mask=inside)
    if PRODUCTS == 3:
        tl.store(x + wide(count, row0) * WIDTH + at, lo, mask=inside)


@triton.jit
def split_kernel(
    x0,
    x1,
    x2,
    x3,
    d,
    x,
    scales,
    squares,
    count,
    PARTS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    B3: tl.constexpr,
    WIDTH: tl.constexpr,
    TIMES: tl.constexpr,
    ONE_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Scale and split [x0 | x1 ...] [count, K0 + K1 + ...], or x0 d with ``TIMES``; with ``ONE_ROW`` as well, x0 is [K0]."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    if ONE_ROW:
        column = tl.arange(0, B0)
        part0 = load_rows(d, row0, count, K0, 0, ROWS, B0) * tl.load(x0 + column, mask=column < K0, other=0.0)[None, :]
        square = tl.sum(part0 * part0, axis=1)
    else:
        part0, part1, part2, part3, square = load_parts(
            x0, x1, x2, x3, row0, count, PARTS, K0, K1, K2, K3, ROWS, B0, B1, B2, B3
        )
        if TIMES:
            part0 *= load_rows(d, row0, count, K0, 0, ROWS, B0)
            square = tl.sum(part0 * part0, axis=1)
    scale = power_of_two(tl.sqrt(square))
    row = tl.arange(0, ROWS)
    inside = row < count - row0
    tl.store(scales + row0 + row, scale, mask=inside)
    tl.store(squares + row0 + row, square, mask=inside)
    store_part(x, part0, scale, row0, count, 0, P0, B0, WIDTH, ROWS, PRODUCTS)
    if PARTS > 1:
        store_part(x, part1, scale, row0, count, P0, P1, B1, WIDTH, ROWS, PRODUCTS)
    if PARTS > 2:
        store_part(x, part2, scale, row0, count, P0 + P1, P2, B2, WIDTH, ROWS, PRODUCTS)
    if PARTS > 3:
        store_part(x, part3, scale, row0, count, P0 + P1 + P2, P3, B3, WIDTH, ROWS, PRODUCTS)


@triton.jit
def store_columns(
    out, values, row0, count, start: tl.constexpr, K: tl.constexpr, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store those columns of a tile, which begins at ``column0``, that belong to the part [count, K] beginning at column ``start``."""
    if (column0 < start + K) & (column0 + COLUMNS > start):
        row, column = fragment_rows(ROWS), column0 - start + fragment_columns(COLUMNS)
        inside = (row < count - row0) & (column >= 0) & (column < K)
        tl.store(out + row0 * K + (row * K + column), fragment(values, ROWS, COLUMNS), mask=inside)


@triton.jit
def layer_kernel(
    x,
    scales,
    squares,
    w,
    w_info,
    d,
    out,
    out_scales,
    out_squares,
    out1,
    out2,
    out3,
    count,
    steps,
    K: tl.constexpr,
    N: tl.constexpr,
    PADDED_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCKS_IN: tl.constexpr,
    THEN: tl.constexpr,
    TO_FP16: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute x W for fp16 parts x [.., count, K] and W [.., K, PADDED_N], in ``steps`` = PRODUCTS K / CHUNK products.

    ``THEN`` says what follows the product: "silu" takes silu and writes silu' into d [count, N]; "silu dot" does the same, but stores only
    the product with a vector ``out1`` [PADDED_N], a sum for each block of columns, in ``out`` [blocks, count]; "times d" multiplies by d;
    "add d" adds the row d [PADDED_N]. Otherwise the result is written as fp16 parts of ``WIDTH`` columns with ``out_scales`` and
    ``out_squares`` or, without ``TO_FP16``, as fp32 in up to four parts [count, K0], [count, K1] and so on.
    """
    blocks: tl.constexpr = PADDED_N // BLOCK_N
    row0 = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    block = tl.program_id(0) % blocks
    column0 = block * BLOCK_N
    # rows beyond the last one repeat it and are not stored
    row = tl.minimum(row0 + tl.arange(0, ROWS), count - 1)
    depth = tl.arange(0, CHUNK)
    from_x = x + (row[:, None] * K + depth[None, :])
    from_w = w + (depth[:, None] * PADDED_N + (column0 + tl.arange(0, BLOCK_N))[None, :])
    low_x = wide(count, row0) * K
    low_w: tl.constexpr = K * PADDED_N
    total = tl.zeros([ROWS, BLOCK_N], dtype=tl.float32)
    for step in range(steps):
        if PRODUCTS == 3:
            # first lo hi and hi lo over the inner dimension, then hi hi: additions to a small sum have small rounding errors
            first = step < 2 * (K // CHUNK)
            k0 = tl.where(first, step // 2, step - 2 * (K // CHUNK)) * CHUNK
            a = from_x + k0 + tl.where(first & (step % 2 == 0), low_x, 0)
            b = from_w + k0 * PADDED_N + tl.where(first & (step % 2 == 1), low_w, 0)
        else:
            a, b = from_x + step * CHUNK, from_w + step * CHUNK * PADDED_N
        total = tl.dot(tl.load(a), tl.load(b), total)

    lane = tl.arange(0, ROWS)
    inside = lane < count - row0
    total *= unscale_factor(tl.load(scales + row), w_info, K, 1)[
        :, None
    ]  # one product: two of the three have small sums
    if THEN == "silu" or THEN == "silu dot":
        total, derivative = silu_and_derivative(total)
        store_fragment(d, derivative, row0, count, N, column0, ROWS, BLOCK_N)
    if THEN == "times d":
        total *= load_fragment(d, row0, count, N, column0, ROWS, BLOCK_N)
    if THEN == "add d":
        total += tl.load(d + column0 + tl.arange(0, BLOCK_N))[None, :]
    if TO_FP16:
        square = tl.zeros([ROWS], dtype=tl.float32)
        for b in tl.static_range(BLOCKS_IN):
            square += tl.load(squares + b * wide(count, row0) + row)
        # |silu(p)| <= |p| and |silu'(p)| < 1.1
        scale = power_of_two(tl.sqrt(square) * tl.load(w_info + 1) * 1.1)
        hi, lo = split_fp16(total * scale[:, None])
        store_fragment(out, hi, row0, count, WIDTH, column0, ROWS, BLOCK_N)
        if PRODUCTS == 3:
            store_fragment(out + wide(count, row0) * WIDTH, lo, row0, count, WIDTH, column0, ROWS, BLOCK_N)
        tl.store(out_scales + row0 + lane, scale, mask=inside & (block == 0))
        tl.store(out_squares + block * wide(count, row0) + row0 + lane, tl.sum(total * total, axis=1), mask=inside)
    elif THEN == "silu dot":
        total *= tl.load(out1 + column0 + tl.arange(0, BLOCK_N))[None, :]
        tl.store(out + block * wide(count, row0) + row0 + lane, tl.sum(total, axis=1), mask=inside)
    else:
        store_columns(out, total, row0, count, 0, K0, column0, ROWS, BLOCK_N)
        if PARTS > 1:
            store_columns(out1, total, row0, count, K0, K1, column0, ROWS, BLOCK_N)
        if PARTS > 2:
            store_columns(out2, total, row0, count, K0 + K1, K2, column0, ROWS, BLOCK_N)
        if PARTS > 3:
            store_columns(out3, total, row0, count, K0 + K1 + K2, K3, column0, ROWS, BLOCK_N)


def _layer(
    x: list[Tensor],
    w: list[Tensor],
    widths: list[int],
    then: str,
    to_fp16: bool,
    products: int,
    d: Tensor | None = None,
    v: Tensor | None = None,
) -> list[Tensor]:
    """Run one layer: returns fp16 parts, scales and squares, or fp32 parts of ``widths``, or the product with ``v`` for each block of
    columns."""
    x_fp16, scales, squares = x
    count, outer, width, rows = x_fp16.shape[1], sum(widths), tiles.deep(widths[0]), 128
    columns, block = w[0].shape[2], tiles.layer_block(outer, products)
    if to_fp16:
        out = [
            x_fp16.new_empty((x_fp16.shape[0], count, width)),
            scales.new_empty((count,)),
            scales.new_empty((columns // block, count)),
        ]
        pointers = [*out, *out[:1] * 3]
    elif v is not None:
        out = [scales.new_empty((columns // block, count))]
        pointers = [*out, scales, scales, v, v, v]
    else:
        out = [scales.new_empty((count, k)) for k in widths]
        pointers = [out[0], scales, scales, *launcher.four(out)[1:]]
    parts = {f"K{j}": k for j, k in enumerate([*widths, 0, 0, 0][:4])}
    _, warps, stages = tiles.LAYER_TILES[products]
    # the number of steps is no constexpr, or the loop would be unrolled, which takes long to compile
    steps = products * x_fp16.shape[2] // tiles.DEPTH
    launcher.launch(
        layer_kernel,
        (triton.cdiv(count, rows) * (columns // block),),
        *x,
        *w,
        scales if d is None else d,
        *pointers,
        count,
        steps,
        K=x_fp16.shape[2],
        N=outer,
        PADDED_N=columns,
        BLOCK_N=block,
        BLOCKS_IN=squares.shape[0],
        THEN=then,
        TO_FP16=to_fp16,
        WIDTH=width,
        PARTS=len(widths),
        **parts,
        ROWS=rows,
        CHUNK=tiles.DEPTH,
        PRODUCTS=products,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@triton_op("nequip_md::halves_triton", mutates_args={})
def split_parts(parts: list[Tensor], d: list[Tensor], one_row: bool, products: int) -> list[Tensor]:
    count, widths, rows = (d if one_row else parts)[0].shape[0], [p.shape[1] for p in parts], 16
    padded = [tiles.deep(k) for k in widths]
    out = [
        parts[0].new_empty((2 if products == 3 else 1, count, sum(padded)), dtype=torch.float16),
        parts[0].new_empty((count,)),
        parts[0].new_empty((1, count)),
    ]
    filled = {
        f"{name}{j}": k
        for name, values in (("K", widths), ("P", padded), ("B", map(triton.next_power_of_2, padded)))
        for j, k in enumerate([*values, *[tiles.DEPTH] * (4 - len(widths))])
    }
    launcher.launch(
        split_kernel,
        (triton.cdiv(count, rows),),
        *launcher.four(parts),
        *(d or parts[:1]),
        *out,
        count,
        PARTS=len(widths),
        **filled,
        WIDTH=sum(padded),
        TIMES=bool(d),
        ONE_ROW=one_row,
        ROWS=rows,
        PRODUCTS=products,
        num_warps=8,
    )
    return out


@triton_op("nequip_md::layer_silu_triton", mutates_args={})
def layer_silu(x: list[Tensor], w: list[Tensor], outer: int, to_fp16: bool, products: int) -> list[Tensor]:
    d = x[1].new_empty((x[1].shape[0], outer), dtype=tiles.derivative_dtype(products))
    return [*_layer(x, w, [outer], "silu", to_fp16, products, d), d]


@triton_op("nequip_md::layer_dot_triton", mutates_args={})
def layer_dot(x: list[Tensor], w: list[Tensor], v: Tensor, outer: int, products: int) -> list[Tensor]:
    d = x[1].new_empty((x[1].shape[0], outer), dtype=tiles.derivative_dtype(products))
    return [*_layer(x, w, [outer], "silu dot", False, products, d, v), d]


@triton_op("nequip_md::layer_times_triton", mutates_args={})
def layer_times(x: list[Tensor], w: list[Tensor], d: Tensor, products: int) -> list[Tensor]:
    return _layer(x, w, [d.shape[1]], "times d", True, products, d)


@triton_op("nequip_md::layer_parts_triton", mutates_args={})
def layer_parts(x: list[Tensor], w: list[Tensor], widths: list[int], add: list[Tensor], products: int) -> list[Tensor]:
    return _layer(x, w, widths, "add d" if add else "", False, products, add[0] if add else None)
