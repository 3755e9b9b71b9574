"""Kernels of NequIP's convolution (:mod:`nequip_md.ops.tensor_product_convolution`), over the edges of one centre.

One launch is for all paths from one irrep of the features, with A components a and U channels. The components of all their
messages stand side by side, C in number, padded to ``BLOCK_C``. What couples a with c is a matrix for each edge, made before:
``coupling`` [E, ``COUPLING_WIDTH``] holds it from column ``COUPLING_FIRST`` on as [A, BLOCK_C], zero in the padding. ``table``,
[2, BLOCK_C] from ``TABLE`` on, says where a component finds its path's weights, counted from ``W_FIRST``, and its columns in a
row of messages.

One program has one centre and ``BLOCK_U`` channels; both kinds of components stay in its threads' registers. Where edges are
independent, the last index of the grid shares them out; a sum takes ``UNROLL`` at a time, so that their loads are in flight together.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(table, TABLE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, U: tl.constexpr, BLOCK_U: tl.constexpr):
    """This program's channels and components, which of the pairs exist, the first weight of each component, and columns in a row of
    messages."""
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    c = tl.arange(0, BLOCK_C)
    inside = (c < C)[:, None] & (u < U)[None, :]
    first = tl.load(table + TABLE + c)
    column = tl.load(table + TABLE + BLOCK_C + c)[:, None] + u[None, :]
    return u, c, inside, first, column


@triton.jit
def sum_kernel(
    x,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    out,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The messages to a centre: out[c, u] = sum over edges of w[c, u] times the sum over a of coupling[a, c] x[a, u]."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([BLOCK_C, BLOCK_U], dtype=out.dtype.element_ty)
    for e0 in range(begin, end, UNROLL):
        for k in tl.static_range(UNROLL):
            e = tl.minimum(e0 + k, end - 1)
            x_j = x + tl.load(neighbour + e) * X_WIDTH + X_FIRST
            coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
            w_e = tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside & (e0 + k < end), other=0.0)
            message = tl.zeros([BLOCK_C, BLOCK_U], dtype=out.dtype.element_ty)
            for a in tl.static_range(A):
                x_a = tl.load(x_j + a * U + u, mask=u < U, other=0.0)
                message += tl.load(coupling_e + a * BLOCK_C + c)[:, None] * x_a[None, :]
            total += message * w_e
    tl.store(out + i * G_WIDTH + column, total, mask=inside)


@triton.jit
def nodes_kernel(
    g,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    dx,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Added to dx of each edge's neighbour: dx[a, u] = sum over c of coupling[a, c] g[c, u] w[c, u]."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    g_i = tl.load(g + i * G_WIDTH + column, mask=inside, other=0.0)
    for e in range(begin + tl.program_id(2), end, tl.num_programs(2)):
        dx_j = dx + tl.load(neighbour + e) * X_WIDTH + X_FIRST
        coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
        gw = g_i * tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside, other=0.0)
        for a in tl.static_range(A):
            part = tl.sum(tl.load(coupling_e + a * BLOCK_C + c)[:, None] * gw, axis=0)
            tl.atomic_add(dx_j + a * U + u, part, mask=u < U, sem="relaxed")


@triton.jit
def edges_kernel(
    x,
    g,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    dcoupling,
    dw,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    DCOUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    DCOUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PATHS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """dw[p, u] = sum over the components c of path p of g[c, u] times the sum over a of coupling[a, c] x[a, u], and
    dcoupling[a, c] = sum over u of x[a, u] g[c, u] w[c, u], whose parts for each block of channels stand side by side."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    g_i = tl.load(g + i * G_WIDTH + column, mask=inside, other=0.0)
    dcoupling += DCOUPLING_FIRST + tl.program_id(1) * (A * BLOCK_C)
    for e in range(begin + tl.program_id(2), end, tl.num_programs(2)):
        x_j = x + tl.load(neighbour + e) * X_WIDTH + X_FIRST
        coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
        gw = g_i * tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside, other=0.0)
        message = tl.zeros([BLOCK_C, BLOCK_U], dtype=dw.dtype.element_ty)
        for a in tl.static_range(A):
            x_a = tl.load(x_j + a * U + u, mask=u < U, other=0.0)[None, :]
            message += tl.load(coupling_e + a * BLOCK_C + c)[:, None] * x_a
            tl.store(dcoupling + e * DCOUPLING_WIDTH + a * BLOCK_C + c, tl.sum(gw * x_a, axis=1))
        message *= g_i
        for p in tl.static_range(PATHS):
            part = tl.sum(tl.where((first == p * U)[:, None], message, 0.0), axis=0)
            tl.store(dw + e * W_WIDTH + W_FIRST + p * U + u, part, mask=u < U)
