"""An MLP with a scalar result, and its gradient, in one pass (:mod:`nequip_md.ops.mlp`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher, tiles
from nequip_md.kernels.triton.mlp_arithmetic import load_rows, silu_and_derivative
from nequip_md.kernels.triton.mlp_two_layers import input_gradients, second_preactivation, store_parts


@triton.jit
def readout_row(r, start: tl.constexpr, B: tl.constexpr):
    return tl.load(r + start + tl.arange(0, B))[None, :]


@triton.jit
def energy_kernel(
    x0,
    x1,
    x2,
    x3,
    w1_hi,
    w1_lo,
    w1_info,
    w2_hi,
    w2_lo,
    w2_info,
    v,
    r,
    factor,
    energy,
    dx0,
    dx1,
    dx2,
    dx3,
    scratch,
    count,
    PARTS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    B3: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Compute energy = v silu(silu(x W1) W2) + r x and its gradient by x in one pass.

    r [B0 + B1 + ...] and v [P2] are padded with zeros. With ``SCALED``, both results are multiplied by ``factor`` [count].

    Each program processes every num_programs-th block of rows. It keeps silu'(x W1) in its own tile [ROWS, P1 + P2] of ``scratch``,
    which never leaves the L2 cache.
    """
    lane = tl.arange(0, ROWS)
    mine = scratch + tl.program_id(0).to(tl.int64) * ROWS * (P1 + P2)
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(count, ROWS), tl.num_programs(0)):
        row0 = block * ROWS
        result = tl.sum(load_rows(x0, row0, count, K0, 0, ROWS, B0) * readout_row(r, 0, B0), axis=1)
        if PARTS > 1:
            result += tl.sum(load_rows(x1, row0, count, K1, 0, ROWS, B1) * readout_row(r, B0, B1), axis=1)
        if PARTS > 2:
            result += tl.sum(load_rows(x2, row0, count, K2, 0, ROWS, B2) * readout_row(r, B0 + B1, B2), axis=1)
        if PARTS > 3:
            result += tl.sum(load_rows(x3, row0, count, K3, 0, ROWS, B3) * readout_row(r, B0 + B1 + B2, B3), axis=1)
        total = second_preactivation(
            x0,
            x1,
            x2,
            x3,
            row0,
            count,
            mine,
            0,
            ROWS,
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            PARTS,
            K0,
            K1,
            K2,
            K3,
            B0,
            B1,
            B2,
            B3,
            P1,
            P1,
            P2,
            ROWS,
            CHUNK,
            PRODUCTS,
        )
        v_n = tl.load(v + tl.arange(0, P2))[None, :]
        h, d = silu_and_derivative(total)
        result += tl.sum(h * v_n, axis=1)
        inside = lane < count - row0
        if SCALED:
            scale = tl.load(factor + row0 + lane, mask=inside, other=0.0)
            result *= scale
        tl.store(energy + row0 + lane, result, mask=inside)

        # backward: v is the gradient of the hidden layer. The barrier is needed since other threads of this program stored silu'
        tl.debug_barrier()
        total0, total1, total2, total3 = input_gradients(
            v_n * d,
            mine,
            0,
            ROWS,
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            mine + ROWS * P1,
            PRODUCTS == 3,
            PARTS,
            B0,
            B1,
            B2,
            B3,
            P1,
            P1,
            P2,
            ROWS,
            CHUNK,
            PRODUCTS,
        )
        tl.debug_barrier()

        total0 += readout_row(r, 0, B0)
        if PARTS > 1:
            total1 += readout_row(r, B0, B1)
        if PARTS > 2:
            total2 += readout_row(r, B0 + B1, B2)
        if PARTS > 3:
            total3 += readout_row(r, B0 + B1 + B2, B3)
        if SCALED:
            total0 *= scale[:, None]
            total1 *= scale[:, None]
            total2 *= scale[:, None]
            total3 *= scale[:, None]
        store_parts(
            dx0, dx1, dx2, dx3, total0, total1, total2, total3, row0, count, ROWS, PARTS, K0, K1, K2, K3, B0, B1, B2, B3
        )


@triton_op("nequip_md::mlp_energy_triton", mutates_args={})
def mlp_energy(
    parts: list[Tensor],
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    v: Tensor,
    r: Tensor,
    factor: list[Tensor],
    inner: int,
    outer: int,
    products: int,
) -> list[Tensor]:
    widths, count = [p.shape[1] for p in parts], parts[0].shape[0]
    energy = parts[0].new_empty((count,))
    gradients = [torch.empty_like(p) for p in parts]
    forms = tiles.tiles_by_count("energy", widths, inner, outer, products, count)
    most = max(tile["ROWS"] for tile, _ in forms)
    scratch = parts[0].new_empty(
        (launcher.PROGRAMS, most, launcher.tile_width(inner) + launcher.tile_width(outer)),
        dtype=tiles.derivative_dtype(products),
    )
    for tile, wanted in forms:
        launcher.launch(
            energy_kernel,
            (wanted * launcher.PROGRAMS,),
            *launcher.four(parts),
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            v,
            r,
            *(factor or [v]),
            energy,
            *launcher.four(gradients),
            scratch,
            count,
            **tiles.part_constants(widths),
            P1=launcher.tile_width(inner),
            P2=launcher.tile_width(outer),
            PRODUCTS=products,
            SCALED=bool(factor),
            **tile,
        )
    return [energy, *gradients]
