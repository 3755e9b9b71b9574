"""The contraction and its gradient over the edges of one centre.

Sums have a fixed order and use no atomics; offsets are 64-bit. In the kernels of the gradient a program processes one centre.
Names and pointers are as in ``edge_moment.py``. K is the number of layers that contract the same w and y; a numbered
argument belongs to one of these layers, and those beyond K are not read.

Each thread processes some channels of one edge at a time, and keeps its sums over edges in registers until the last edge.
EDGES and the number of warps should be such that a tile [EDGES, BLOCK_U] has 16 bytes for each thread, and that a row or a
column of it has fewer elements than there are threads: Triton then loads y and z in the layout of the tile, without shared
memory. With TOGETHER, the sums of all threads are reduced at once, through EDGES * BLOCK_U * BLOCK_M numbers of shared
memory; without, one component after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.edge_moment import add_order


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
def join_pairs(tiles, COUNT: tl.constexpr):
    """Join the first 2 COUNT tiles in pairs, tile m with tile m + COUNT."""
    out = ()
    for m in tl.static_range(COUNT):
        out = out + (tl.join(tiles[m], tiles[m + COUNT]),)
    return out


@triton.jit
def sum_rows(tiles, M: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum each of M tiles [ROWS, WIDTH] over its rows: [BLOCK_M, WIDTH]. All of them take one exchange between warps."""
    for _ in tl.static_range(BLOCK_M - M):
        tiles = tiles + (tl.zeros_like(tiles[0]),)
    if BLOCK_M >= 32:
        tiles = join_pairs(tiles, 16)
    if BLOCK_M >= 16:
        tiles = join_pairs(tiles, 8)
    if BLOCK_M >= 8:
        tiles = join_pairs(tiles, 4)
    if BLOCK_M >= 4:
        tiles = join_pairs(tiles, 2)
    if BLOCK_M >= 2:
        tiles = join_pairs(tiles, 1)
    return tl.trans(tl.sum(tl.reshape(tiles[0], [ROWS, WIDTH, BLOCK_M]), axis=0))


@triton.jit
def store_sums(
    tiles,
    dz,
    u,
    U: tl.constexpr,
    M: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EDGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    if TOGETHER:
        m = tl.arange(0, BLOCK_M)
        total = sum_rows(tiles, M, BLOCK_M, EDGES, BLOCK_U)
        tl.store(dz + m[:, None] * U + u[None, :], total, mask=(m < M)[:, None] & (u < U)[None, :])
    else:
        for m in tl.static_range(M):
            tl.store(dz + m * U + u, tl.sum(tiles[m], axis=0), mask=u < U)


@triton.jit
def zero_tiles(COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr):
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros([ROWS, WIDTH], dtype=dtype),)
    return out


@triton.jit
def load_orders(w, at, inside, U: tl.constexpr, L: tl.constexpr):
    out = ()
    for l in tl.static_range(L):
        out = out + (tl.load(w + l * U + at, mask=inside, other=0.0),)
    return out


@triton.jit
def load_components(y, e, valid, M: tl.constexpr):
    out = ()
    for m in tl.static_range(M):
        out = out + (tl.load(y + e * M + m, mask=valid, other=0.0)[:, None],)
    return out


@triton.jit
def contract_moment_kernel(
    g,
    w,
    y,
    row_ptr,
    dz,
    U: tl.constexpr,
    L: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EDGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Compute dz only; the second index of the grid is a block of channels."""
    M: tl.constexpr = L * L
    i = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    sums = zero_tiles(M, EDGES, BLOCK_U, dz.dtype.element_ty)
    for e0 in range(begin, end, EDGES):
        # all loads come before the arithmetic, so that they are in flight together
        valid = e < end - e0
        inside = valid[:, None] & (u < U)[None, :]
        g_e = tl.load(g + e0 * U + e[:, None] * U + u[None, :], mask=inside, other=0.0)
        w_e = load_orders(w + e0 * (L * U), (e * L)[:, None] * U + u[None, :], inside, U, L)
        y_e = load_components(y + e0 * M, e, valid, M)
        new = ()
        for l in tl.static_range(L):
            scaled = g_e * w_e[l]
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                new = new + (sums[m] + scaled * y_e[m],)
        sums = new
    store_sums(sums, dz + i * (M * U), u, U, M, BLOCK_U, BLOCK_M, EDGES, TOGETHER)


@triton.jit
def contract_gradient_kernel(
    g0,
    g1,
    g2,
    g3,
    w,
    y,
    z0,
    z1,
    z2,
    z3,
    row_ptr,
    dw,
    dy,
    dz,
    U: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EDGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Compute dw and dy, summed over the layers, and dz of the first layer. BLOCK_U is at least M.

    With t_m = sum over k of g_k z_k,m, the sum over layers costs one multiplication for each layer:
    dw_l = sum over m in l of y_m t_m, and dy_m = sum over channels of w_l(m) t_m.
    """
    M: tl.constexpr = L * L
    i = tl.program_id(0).to(tl.int64)
    u = tl.arange(0, BLOCK_U)
    e = tl.arange(0, EDGES)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    g = (g0, g1, g2, g3)
    z = (z0 + i * (M * U), z1 + i * (M * U), z2 + i * (M * U), z3 + i * (M * U))
    sums = zero_tiles(M, EDGES, BLOCK_U, dz.dtype.element_ty)
    for e0 in range(begin, end, EDGES):
        valid = e < end - e0
        inside = valid[:, None] & (u < U)[None, :]
        at = (e * L)[:, None] * U + u[None, :]
        g_e = ()
        for k in tl.static_range(K):
            g_e = g_e + (tl.load(g[k] + e0 * U + e[:, None] * U + u[None, :], mask=inside, other=0.0),)
        w_e = load_orders(w + e0 * (L * U), at, inside, U, L)
        # this tile has the layout of the others, though only M of its columns are used
        dy_e = tl.zeros([EDGES, BLOCK_U], dtype=dy.dtype.element_ty)
        new = ()
        for l in tl.static_range(L):
            scaled = g_e[0] * w_e[l]
            dw_l = tl.zeros([EDGES, BLOCK_U], dtype=dw.dtype.element_ty)
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                # loaded here and not before the loop, as the number of registers limits how many programs run at a time
                y_m = tl.load(y + e0 * M + e * M + m, mask=valid, other=0.0)[:, None]
                new = new + (sums[m] + scaled * y_m,)
                t = g_e[0] * tl.load(z[0] + m * U + u, mask=u < U, other=0.0)[None, :]
                for k in tl.static_range(1, K):
                    t += g_e[k] * tl.load(z[k] + m * U + u, mask=u < U, other=0.0)[None, :]
                dw_l += y_m * t
                dy_e = tl.where((u == m)[None, :], tl.sum(w_e[l] * t, axis=1)[:, None], dy_e)
            tl.store(dw + e0 * (L * U) + l * U + at, dw_l, mask=inside)
        tl.store(dy + e0 * M + e[:, None] * M + u[None, :], dy_e, mask=valid[:, None] & (u < M)[None, :])
        sums = new
    store_sums(sums, dz + i * (M * U), u, U, M, BLOCK_U, BLOCK_M, EDGES, TOGETHER)


@triton_op("nequip_md::edge_contract_triton", mutates_args={})
def edge_contract(w: Tensor, y: Tensor, z: Tensor, row_ptr: Tensor) -> Tensor:
    (edges, orders, channels), count = w.shape, row_ptr.shape[0] - 1
    out = w.new_empty((edges, channels))
    block = min(launcher.tile_width(channels), 128)
    grid = (count, triton.cdiv(channels, block), launcher.shares(count, 6))
    launcher.launch(
        contract_kernel,
        grid,
        w,
        y,
        z,
        row_ptr,
        out,
        U=channels,
        L=orders,
        BLOCK_U=block,
        EDGES=16,
        num_warps=4,
    )
    return out


def _contract_constants(w: Tensor, block: int, warps: int) -> dict:
    """Tile sizes of a contraction's gradient: 16 bytes for each thread, at least two threads for each channel."""
    orders, channels = w.shape[1:]
    components = triton.next_power_of_2(orders**2)
    edges = max(1, 512 * warps // (block * w.element_size()))
    return {
        "U": channels,
        "L": orders,
        "BLOCK_U": block,
        "BLOCK_M": components,
        "EDGES": edges,
        "TOGETHER": edges * block * components * w.element_size() <= 64 * 1024,
        "num_warps": warps,
    }


@triton_op("nequip_md::edge_contract_moment_triton", mutates_args={})
def edge_contract_moment(g: Tensor, w: Tensor, y: Tensor, row_ptr: Tensor) -> Tensor:
    count, channels = row_ptr.shape[0] - 1, w.shape[2]
    dz = w.new_empty((count, y.shape[1], channels))
    block = min(launcher.tile_width(channels), 32)
    launcher.launch(
        contract_moment_kernel,
        (count, triton.cdiv(channels, block)),
        g,
        w,
        y,
        row_ptr,
        dz,
        **_contract_constants(w, block, 2),
    )
    return dz


@triton_op("nequip_md::edge_contract_gradient_triton", mutates_args={})
def edge_contract_gradient(g: list[Tensor], w: Tensor, y: Tensor, z: list[Tensor], row_ptr: Tensor) -> list[Tensor]:
    dw, dy, dz = w.new_empty(w.shape), torch.empty_like(y), z[0].new_empty(z[0].shape)
    block = max(launcher.tile_width(w.shape[2]), triton.next_power_of_2(y.shape[1]))
    # unused pointers repeat w: Inductor materializes some arrays, such as z, once for each mention among the arguments
    pointers = [*g, *[w] * (4 - len(g)), w, y, *z, *[w] * (4 - len(z))]
    launcher.launch(
        contract_gradient_kernel,
        (row_ptr.shape[0] - 1,),
        *pointers,
        row_ptr,
        dw,
        dy,
        dz,
        K=len(g),
        **_contract_constants(w, block, max(4, min(8, block // 16))),
    )
    return [dw, dy, dz]
