"""Kernels over the edges of one centre. Sums have a fixed order and use no atomics; offsets are 64-bit.

One program has one centre i (and, where channels are independent, one block of them); its edges are
``row_ptr[i] ... row_ptr[i + 1]``. Where edges are independent, the last index of the grid shares them out: program k of K takes
every K-th tile of ``EDGES``. Names as in the operators: E edges, N centres, L orders, M = L^2 components, C or U
channels. ``BLOCK_C`` is C rounded up to a power of two, or a block of it; ``EDGES`` is the number of edges at a time.

Pointers are moved by 64-bit scalars to the first edge of a tile, and 32-bit offsets lead on from there.
"""

from __future__ import annotations

from math import isqrt

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher


@triton.jit
def moment_kernel(
    a,
    y,
    row_ptr,
    out,
    C: tl.constexpr,
    M: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    order = (m >= 1).to(tl.int32) + (m >= 4).to(tl.int32) + (m >= 9).to(tl.int32) + (m >= 16).to(tl.int32)
    inside = (m < M)[:, None] & (c < C)[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([BLOCK_M, BLOCK_C], dtype=out.dtype.element_ty)
    for e0 in range(begin, end, UNROLL):
        # unrolled, so that the loads of several edges are in flight together
        for k in tl.static_range(UNROLL):
            e = e0 + k
            y_e = tl.load(y + e * M + m, mask=(m < M) & (e < end), other=0.0)
            if SLOTS == 1:
                a_e = tl.load(a + e * C + c, mask=(c < C) & (e < end), other=0.0)[None, :]
            else:
                a_e = tl.load(a + e * (SLOTS * C) + order[:, None] * C + c[None, :], mask=inside & (e < end), other=0.0)
            total += y_e[:, None] * a_e
    tl.store(out + i * (M * C) + m[:, None] * C + c[None, :], total, mask=inside)


@triton.jit
def add_order(total, y_0, z, e, valid, c, C: tl.constexpr, M: tl.constexpr, l: tl.constexpr):
    """total + sum over the components m of order l of y[e, m] z[m, c]."""
    for m in tl.static_range(l * l, (l + 1) * (l + 1)):
        y_m = tl.load(y_0 + e * M + m, mask=valid, other=0.0)
        z_m = tl.load(z + m * C + c, mask=c < C, other=0.0)
        total += y_m[:, None] * z_m[None, :]
    return total


@triton.jit
def spread_kernel(
    y,
    z,
    row_ptr,
    start0,
    start1,
    start2,
    start3,
    out,
    C: tl.constexpr,
    L: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EDGES: tl.constexpr,
    STARTS: tl.constexpr,
):
    """Compute the derivative by ``a``. For one slot, the first ``STARTS`` of start0 to start3 are added to it."""
    M: tl.constexpr = L * L
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    starts = (start0, start1, start2, start3)
    z += i * (M * C)
    for e0 in range(begin + tl.program_id(2) * EDGES, end, tl.num_programs(2) * EDGES):
        valid = e < end - e0
        inside = valid[:, None] & (c < C)[None, :]
        y_0 = y + e0 * M
        out_0 = out + e0 * (SLOTS * C)
        total = tl.zeros([EDGES, BLOCK_C], dtype=out.dtype.element_ty)
        for k in tl.static_range(STARTS):
            total += tl.load(starts[k] + e0 * C + e[:, None] * C + c[None, :], mask=inside, other=0.0)
        for l in tl.static_range(L):
            total = add_order(total, y_0, z, e, valid, c, C, M, l)
            if SLOTS > 1:
                tl.store(out_0 + (e * SLOTS + l)[:, None] * C + c[None, :], total, mask=inside)
                total = tl.zeros([EDGES, BLOCK_C], dtype=out.dtype.element_ty)
        if SLOTS == 1:
            tl.store(out_0 + e[:, None] * C + c[None, :], total, mask=inside)


@triton.jit
def spread_product_kernel(
    y,
    z,
    row_ptr,
    start0,
    start1,
    start2,
    start3,
    out,
    C: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EDGES: tl.constexpr,
    STARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same as spread_kernel for one slot in fp32, as a product [EDGES, M] by [M, C] on the tensor cores."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    starts = (start0, start1, start2, start3)
    z_i = tl.load(z + i * (M * C) + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0.0)
    for e0 in range(begin + tl.program_id(2) * EDGES, end, tl.num_programs(2) * EDGES):
        valid = e < end - e0
        inside = valid[:, None] & (c < C)[None, :]
        y_e = tl.load(y + e0 * M + e[:, None] * M + m[None, :], mask=valid[:, None] & (m < M)[None, :], other=0.0)
        total = tl.dot(y_e, z_i, input_precision=PRECISION)
        for k in tl.static_range(STARTS):
            total += tl.load(starts[k] + e0 * C + e[:, None] * C + c[None, :], mask=inside, other=0.0)
        tl.store(out + e0 * C + e[:, None] * C + c[None, :], total, mask=inside)


@triton.jit
def dot_kernel(
    a,
    z,
    row_ptr,
    out,
    C: tl.constexpr,
    L: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EDGES: tl.constexpr,
):
    M: tl.constexpr = L * L
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    z += i * (M * C)
    for e0 in range(begin, end, EDGES):
        valid = e < end - e0
        inside = valid[:, None] & (c < C)[None, :]
        a_0 = a + e0 * (SLOTS * C)
        out_0 = out + e0 * M
        a_l = tl.load(a_0 + (e * SLOTS)[:, None] * C + c[None, :], mask=inside, other=0.0)
        for l in tl.static_range(L):
            if SLOTS > 1 and l > 0:
                a_l = tl.load(a_0 + (e * SLOTS + l)[:, None] * C + c[None, :], mask=inside, other=0.0)
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                z_m = tl.load(z + m * C + c, mask=c < C, other=0.0)
                tl.store(out_0 + e * M + m, tl.sum(a_l * z_m[None, :], axis=1), mask=valid)


@triton.jit
def dot_product_kernel(
    a,
    z,
    row_ptr,
    out,
    C: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EDGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same as dot_kernel for one slot in fp32, as a product [EDGES, C] by [C, M] on the tensor cores, BLOCK_C channels at a time."""
    i = tl.program_id(0).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    z += i * (M * C)
    for e0 in range(begin + tl.program_id(1) * EDGES, end, tl.num_programs(1) * EDGES):
        valid = e < end - e0
        total = tl.zeros([EDGES, BLOCK_M], dtype=tl.float32)
        for c0 in tl.static_range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            a_e = tl.load(a + e0 * C + e[:, None] * C + c[None, :], mask=valid[:, None] & (c < C)[None, :], other=0.0)
            # loaded by rows and then transposed, as loads by columns would not be coalesced
            z_i = tl.trans(
                tl.load(z + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0.0)
            )
            total = tl.dot(a_e, z_i, total, input_precision=PRECISION)
        at = out + e0 * M + e[:, None] * M + m[None, :]
        tl.store(at, total, mask=valid[:, None] & (m < M)[None, :])


@triton.jit
def moment_product_kernel(
    a,
    y,
    row_ptr,
    out,
    C: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EDGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same as moment_kernel for one slot in fp32, as a product [M, EDGES] by [EDGES, C] on the tensor cores."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([BLOCK_M, BLOCK_C], dtype=out.dtype.element_ty)
    for e0 in range(begin, end, EDGES):
        valid = e < end - e0
        at = y + e0 * M + e[None, :] * M + m[:, None]
        y_t = tl.load(at, mask=valid[None, :] & (m < M)[:, None], other=0.0)
        a_e = tl.load(a + e0 * C + e[:, None] * C + c[None, :], mask=valid[:, None] & (c < C)[None, :], other=0.0)
        total = tl.dot(y_t, a_e, total, input_precision=PRECISION)
    tl.store(out + i * (M * C) + m[:, None] * C + c[None, :], total, mask=(m < M)[:, None] & (c < C)[None, :])


@triton_op("nequip_md::edge_moment_triton", mutates_args={})
def edge_moment(a: Tensor, y: Tensor, row_ptr: Tensor, precision: str) -> Tensor:
    (_, slots, channels), components, count = a.shape, y.shape[1], row_ptr.shape[0] - 1
    out = a.new_empty((count, components, channels))
    block = min(launcher.tile_width(channels), 128)
    grid = (count, triton.cdiv(channels, block))
    if slots == 1 and a.dtype == torch.float32:
        launcher.launch(
            moment_product_kernel,
            grid,
            a,
            y,
            row_ptr,
            out,
            C=channels,
            M=components,
            BLOCK_M=launcher.tile_width(components),
            BLOCK_C=block,
            EDGES=32,
            PRECISION=precision,
            num_warps=2,
        )
    else:
        launcher.launch(
            moment_kernel,
            grid,
            a,
            y,
            row_ptr,
            out,
            C=channels,
            M=components,
            SLOTS=slots,
            BLOCK_M=triton.next_power_of_2(components),
            BLOCK_C=block,
            UNROLL=4,
            num_warps=2,
        )
    return out


def _spread(y: Tensor, z: Tensor, row_ptr: Tensor, orders: int, starts: list[Tensor], precision: str) -> Tensor:
    (edges, components), channels, count = y.shape, z.shape[2], row_ptr.shape[0] - 1
    out = y.new_empty((edges, orders, channels))
    block = min(launcher.tile_width(channels), 128)
    if orders == 1 and y.dtype == torch.float32:
        launcher.launch(
            spread_product_kernel,
            (count, triton.cdiv(channels, block), launcher.shares(count, 3)),
            y,
            z,
            row_ptr,
            *launcher.four(starts or [out]),
            out,
            C=channels,
            M=components,
            BLOCK_M=launcher.tile_width(components),
            BLOCK_C=block,
            EDGES=32,
            STARTS=len(starts),
            PRECISION=precision,
            num_warps=4,
            num_stages=3,
        )
        return out
    launcher.launch(
        spread_kernel,
        (count, triton.cdiv(channels, block), launcher.shares(count, 6 if block < 128 else 3)),
        y,
        z,
        row_ptr,
        *launcher.four(starts or [out]),
        out,
        C=channels,
        L=isqrt(components),
        SLOTS=orders,
        BLOCK_C=block,
        EDGES=16,
        STARTS=len(starts),
        num_warps=8 if block == 128 else 4,
    )
    return out


@triton_op("nequip_md::edge_spread_triton", mutates_args={})
def edge_spread(y: Tensor, z: Tensor, row_ptr: Tensor, orders: int, precision: str) -> Tensor:
    return _spread(y, z, row_ptr, orders, [], precision)


@triton_op("nequip_md::edge_spread_add_triton", mutates_args={})
def edge_spread_add(y: Tensor, z: Tensor, row_ptr: Tensor, starts: list[Tensor], precision: str) -> Tensor:
    return _spread(y, z, row_ptr, 1, starts, precision)


@triton_op("nequip_md::edge_dot_triton", mutates_args={})
def edge_dot(a: Tensor, z: Tensor, row_ptr: Tensor, precision: str) -> Tensor:
    (edges, slots, channels), components, count = a.shape, z.shape[1], row_ptr.shape[0] - 1
    out = a.new_empty((edges, components))
    if slots == 1 and a.dtype == torch.float32:
        launcher.launch(
            dot_product_kernel,
            (count, launcher.shares(count, 3)),
            a,
            z,
            row_ptr,
            out,
            C=channels,
            M=components,
            BLOCK_M=launcher.tile_width(components),
            BLOCK_C=min(launcher.tile_width(channels), 64),
            EDGES=32,
            PRECISION=precision,
            num_warps=2,
            num_stages=3 if channels <= 64 else 2,
        )
    else:
        block = launcher.tile_width(channels)
        launcher.launch(
            dot_kernel,
            (count,),
            a,
            z,
            row_ptr,
            out,
            C=channels,
            L=isqrt(components),
            SLOTS=slots,
            BLOCK_C=block,
            EDGES=launcher.edges_at_once(block),
            num_warps=4,
        )
    return out
