"""Kernels over the edges of one centre: no atomics, a fixed order of every sum, 64-bit offsets.

One program has one centre i (and, where channels are independent, one block of them); its edges are
``row_ptr[i] ... row_ptr[i + 1]``. Where edges are independent, the last index of the grid shares them out: program k of K takes
every K-th tile of ``EDGES``. Names as in the operators: E edges, N centres, L orders, M = L^2 components, C or U
channels. ``BLOCK_C`` is C rounded up to a power of two, or a block of it; ``EDGES`` is the number of edges at a time.

Pointers are moved by 64-bit scalars to the first edge of a tile, and 32-bit offsets lead on from there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def segment_sum_kernel(values, row_ptr, out, C, EDGES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([EDGES], dtype=out.dtype.element_ty)
    e = tl.arange(0, EDGES)
    for e0 in range(begin, end, EDGES):
        total += tl.load(values + e0 * C + e * C + c, mask=e < end - e0, other=0.0)
    tl.store(out + i * C + c, tl.sum(total, axis=0))


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
        # several edges at a time, so that their loads are in flight together
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
    """For one slot, the first ``STARTS`` of start0 ... start3 are added to the result."""
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
    """spread_kernel for one slot and fp32 as a matrix product, [EDGES, M] by [M, C], for the tensor cores."""
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
def contract_kernel(
    w, y, z, row_ptr, out, U: tl.constexpr, L: tl.constexpr, BLOCK_U: tl.constexpr, EDGES: tl.constexpr
):
    M: tl.constexpr = L * L
    i = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    z += i * (M * U)
    for e0 in range(begin + tl.program_id(2) * EDGES, end, tl.num_programs(2) * EDGES):
        valid = e < end - e0
        inside = valid[:, None] & (u < U)[None, :]
        y_0 = y + e0 * M
        w_0 = w + e0 * (L * U)
        q = tl.zeros([EDGES, BLOCK_U], dtype=out.dtype.element_ty)
        for l in tl.static_range(L):
            w_l = tl.load(w_0 + (e * L + l)[:, None] * U + u[None, :], mask=inside, other=0.0)
            s = tl.zeros([EDGES, BLOCK_U], dtype=out.dtype.element_ty)
            q += w_l * add_order(s, y_0, z, e, valid, u, U, M, l)
        tl.store(out + e0 * U + e[:, None] * U + u[None, :], q, mask=inside)


@triton.jit
def channel_product_kernel(
    x,
    y,
    w,
    table,
    values,
    offsets,
    out,
    N,
    A: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    TERMS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    ATOMS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The terms are sorted by output component; those of component d are ``offsets[d] ... offsets[d + 1]``."""
    # the components of one block of atoms run side by side: they read the same x and y
    n0 = (tl.program_id(0) // D).to(tl.int64) * ATOMS
    n = tl.arange(0, ATOMS)
    component = tl.program_id(0) % D
    u = tl.arange(0, BLOCK_U)
    inside = (n < N - n0)[:, None] & (u < U)[None, :]
    x += n0 * (A * U)
    y += n0 * (B * U)
    total = tl.zeros([ATOMS, BLOCK_U], dtype=out.dtype.element_ty)
    end = tl.load(offsets + component + 1)
    for t0 in range(tl.load(offsets + component), end, UNROLL):
        # several terms at a time, so that their loads are in flight together
        for k in tl.static_range(UNROLL):
            t = t0 + k
            valid = t < end
            path = tl.load(table + t, mask=valid, other=0)
            first = tl.load(table + TERMS + t, mask=valid, other=0).to(tl.int32)
            second = tl.load(table + 2 * TERMS + t, mask=valid, other=0).to(tl.int32)
            scale = tl.load(values + t, mask=valid, other=0.0) * tl.load(w + path * U + u, mask=u < U, other=0.0)
            x_t = tl.load(x + (n * A + first)[:, None] * U + u[None, :], mask=inside & valid, other=0.0)
            y_t = tl.load(y + (n * B + second)[:, None] * U + u[None, :], mask=inside & valid, other=0.0)
            total += x_t * y_t * scale[None, :]
    tl.store(out + n0 * (D * U) + (n * D + component)[:, None] * U + u[None, :], total, mask=inside)


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
    """dot_kernel for one slot and fp32 as a matrix product, [EDGES, C] by [C, M], for the tensor cores; BLOCK_C channels at a time."""
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
            # as rows and turned: the other way round its loads are not coalesced
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
    """moment_kernel for one slot and fp32 as a matrix product, [M, EDGES] by [EDGES, C], for the tensor cores."""
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
