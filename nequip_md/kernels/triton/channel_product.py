"""The product of two tensors of each atom, channel by channel (:mod:`nequip_md.ops.channel_product`)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher


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
    """Sum the terms of one output component for a block of atoms.

    The terms are sorted by output component; those of component d are ``offsets[d]`` to ``offsets[d + 1] - 1``.
    """
    # programs for the components of one block of atoms are adjacent, since they read the same x and y
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
        # unrolled, so that the loads of several terms are in flight together
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


@triton_op("nequip_md::channel_product_triton", mutates_args={})
def channel_product(
    x: Tensor, y: Tensor, w: Tensor, table: Tensor, values: Tensor, offsets: Tensor, dim: int
) -> Tensor:
    (count, components, channels), terms, atoms = x.shape, table.shape[1], 8
    out = x.new_empty((count, dim, channels))
    launcher.launch(
        channel_product_kernel,
        (triton.cdiv(count, atoms) * dim,),
        x,
        y,
        w,
        table,
        values,
        offsets,
        out,
        count,
        A=components,
        B=y.shape[1],
        D=dim,
        TERMS=terms,
        U=channels,
        BLOCK_U=launcher.tile_width(channels),
        ATOMS=atoms,
        UNROLL=4,
        num_warps=4,
    )
    return out


@triton.jit
def channel_product_weight_kernel(
    x,
    y,
    z,
    table,
    values,
    offsets,
    out,
    N,
    A: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    TERMS: tl.constexpr,
    P: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    ATOMS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Sum the terms of one path over a block of atoms.

    The terms are sorted by path; those of path p are ``offsets[p]`` to ``offsets[p + 1] - 1``.
    """
    block = (tl.program_id(0) // P).to(tl.int64)
    path = tl.program_id(0) % P
    n0 = block * ATOMS
    n = tl.arange(0, ATOMS)
    u = tl.arange(0, BLOCK_U)
    inside = (n < N - n0)[:, None] & (u < U)[None, :]
    x += n0 * (A * U)
    y += n0 * (B * U)
    z += n0 * (D * U)
    total = tl.zeros([ATOMS, BLOCK_U], dtype=out.dtype.element_ty)
    end = tl.load(offsets + path + 1)
    for t0 in range(tl.load(offsets + path), end, UNROLL):
        for k in tl.static_range(UNROLL):
            t = t0 + k
            valid = t < end
            first = tl.load(table + t, mask=valid, other=0).to(tl.int32)
            second = tl.load(table + TERMS + t, mask=valid, other=0).to(tl.int32)
            third = tl.load(table + 2 * TERMS + t, mask=valid, other=0).to(tl.int32)
            scale = tl.load(values + t, mask=valid, other=0.0)
            x_t = tl.load(x + (n * A + first)[:, None] * U + u[None, :], mask=inside & valid, other=0.0)
            y_t = tl.load(y + (n * B + second)[:, None] * U + u[None, :], mask=inside & valid, other=0.0)
            z_t = tl.load(z + (n * D + third)[:, None] * U + u[None, :], mask=inside & valid, other=0.0)
            total += x_t * y_t * z_t * scale
    tl.store(out + (block * P + path) * U + u, tl.sum(total, axis=0), mask=u < U)


@triton_op("nequip_md::channel_product_weight_triton", mutates_args={})
def channel_product_weight(
    x: Tensor, y: Tensor, z: Tensor, table: Tensor, values: Tensor, offsets: Tensor, paths: int
) -> Tensor:
    """Sums over each block of atoms, [blocks, P, U]."""
    (count, components, channels), atoms = x.shape, 16
    # at least two, as torch.export takes a size of 1 for a constant; what lies beyond the atoms adds nothing
    blocks = triton.cdiv(count, atoms) + 1
    out = x.new_empty((blocks, paths, channels))
    launcher.launch(
        channel_product_weight_kernel,
        (blocks * paths,),
        x,
        y,
        z,
        table,
        values,
        offsets,
        out,
        count,
        A=components,
        B=y.shape[1],
        D=z.shape[1],
        TERMS=table.shape[1],
        P=paths,
        U=channels,
        BLOCK_U=launcher.tile_width(channels),
        ATOMS=atoms,
        UNROLL=4,
        num_warps=4,
    )
    return out
