"""Two hidden layers of an MLP, the matrix that may read them, and their gradient (:mod:`nequip_md.ops.mlp`)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher, tiles
from nequip_md.kernels.triton.mlp_arithmetic import (
    load_fragment,
    load_rows,
    power_of_two,
    product,
    silu_and_derivative,
    split_fp16,
    store_fragment,
    unscale_factor,
    weight_tile,
)
from nequip_md.kernels.triton.mlp_two_layers import (
    add_product_transposed,
    input_gradients,
    second_preactivation,
    store_parts,
)


@triton.jit
def hidden_kernel(
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
    w3_hi,
    w3_lo,
    w3_info,
    out,
    d1,
    d2,
    y,
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
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK3: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute out = silu(p2), p2 = silu(p1) W2, p1 = x W1 for x [count, K0 + K1 + ...], W1 [B0 + B1 + ..., P1], W2 [P1, P2].

    Further results are d1 = silu'(p1) [count, N1], d2 = silu'(p2) [count, N2] and, unless N3 = 0, y = out W3 [count, N3] with
    W3 [P2, P3].
    """
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    total = second_preactivation(
        x0,
        x1,
        x2,
        x3,
        row0,
        count,
        d1,
        row0,
        count,
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
        N1,
        P1,
        P2,
        ROWS,
        CHUNK,
        PRODUCTS,
    )
    h, d = silu_and_derivative(total)
    store_fragment(d2, d, row0, count, N2, 0, ROWS, P2)
    store_fragment(out, h, row0, count, N2, 0, ROWS, P2)
    if N3 > 0:
        scale = power_of_two(tl.sqrt(tl.sum(h * h, axis=1)))
        unscale = unscale_factor(scale, w3_info, N2, PRODUCTS)[:, None]
        h_hi, h_lo = split_fp16(h * scale[:, None])
        for n0 in range(0, P3, BLOCK3):
            part = tl.zeros([ROWS, BLOCK3], dtype=tl.float32)
            part = product(
                h_hi,
                h_lo,
                weight_tile(w3_hi, 0, P2, n0, BLOCK3, P3),
                weight_tile(w3_lo, 0, P2, n0, BLOCK3, P3),
                part,
                PRODUCTS,
            )
            store_fragment(y, part * unscale, row0, count, N3, n0, ROWS, BLOCK3)


@triton.jit
def hidden_backward_kernel(
    g,
    dy,
    d1,
    d2,
    w1_hi,
    w1_lo,
    w1_info,
    w2_hi,
    w2_lo,
    w2_info,
    w3_hi,
    w3_lo,
    w3_info,
    dx0,
    dx1,
    dx2,
    dx3,
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
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK3: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute dx = ((g2 * d2) W2^T * d1) W1^T in the parts of x, with g2 = g + dy W3^T, or g if N3 = 0."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    if N3 > 0:
        square = tl.zeros([ROWS], dtype=tl.float32)
        for n0 in tl.static_range(0, P3, BLOCK3):
            part = load_rows(dy, row0, count, N3, n0, ROWS, BLOCK3)
            square += tl.sum(part * part, axis=1)
        scale = power_of_two(tl.sqrt(square))
        total = tl.zeros([ROWS, P2], dtype=tl.float32)
        for n0 in range(0, P3, BLOCK3):
            part = load_rows(dy, row0, count, N3, n0, ROWS, BLOCK3)
            y_hi, y_lo = split_fp16(part * scale[:, None])
            total = add_product_transposed(y_hi, y_lo, w3_hi, w3_lo, 0, P2, n0, BLOCK3, P3, total, PRODUCTS)
        total *= unscale_factor(scale, w3_info, N3, PRODUCTS)[:, None]
        g2 = (total + load_fragment(g, row0, count, N2, 0, ROWS, P2)) * load_fragment(d2, row0, count, N2, 0, ROWS, P2)
    else:
        g2 = load_rows(g, row0, count, N2, 0, ROWS, P2) * load_rows(d2, row0, count, N2, 0, ROWS, P2)
    total0, total1, total2, total3 = input_gradients(
        g2,
        d1,
        row0,
        count,
        w1_hi,
        w1_lo,
        w1_info,
        w2_hi,
        w2_lo,
        w2_info,
        d1,
        False,
        PARTS,
        B0,
        B1,
        B2,
        B3,
        N1,
        P1,
        P2,
        ROWS,
        CHUNK,
        PRODUCTS,
    )
    store_parts(
        dx0, dx1, dx2, dx3, total0, total1, total2, total3, row0, count, ROWS, PARTS, K0, K1, K2, K3, B0, B1, B2, B3
    )


@triton_op("nequip_md::mlp_hidden_triton", mutates_args={})
def mlp_hidden(
    parts: list[Tensor],
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    w3: list[Tensor],
    inner: int,
    outer: int,
    last: int,
    products: int,
) -> list[Tensor]:
    widths, count = [p.shape[1] for p in parts], parts[0].shape[0]
    out = parts[0].new_empty((count, outer))
    d1, d2 = (parts[0].new_empty((count, n), dtype=tiles.derivative_dtype(products)) for n in (inner, outer))
    y = [out.new_empty((count, last))] if last else []
    for tile, wanted in tiles.tiles_by_count("hidden", widths, inner, outer, products, count):
        launcher.launch(
            hidden_kernel,
            (wanted * triton.cdiv(count, tile["ROWS"]),),
            *launcher.four(parts),
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            *(w3 or [w2_hi, w2_lo, w2_info]),
            out,
            d1,
            d2,
            *(y or [out]),
            count,
            **tiles.part_constants(widths),
            N1=inner,
            N2=outer,
            P1=launcher.tile_width(inner),
            P2=launcher.tile_width(outer),
            **tiles.last_constants(last, outer),
            PRODUCTS=products,
            **tile,
        )
    return [out, *y, d1, d2]


@triton_op("nequip_md::mlp_hidden_backward_triton", mutates_args={})
def mlp_hidden_backward(
    g: Tensor,
    dy: list[Tensor],
    d1: Tensor,
    d2: Tensor,
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    w3: list[Tensor],
    widths: list[int],
    products: int,
) -> list[Tensor]:
    (count, inner), outer = d1.shape, d2.shape[1]
    out = [g.new_empty((count, k)) for k in widths]
    for tile, wanted in tiles.tiles_by_count(
        "backward_dense" if w3 else "backward", widths, inner, outer, products, count
    ):
        launcher.launch(
            hidden_backward_kernel,
            (wanted * triton.cdiv(count, tile["ROWS"]),),
            g,
            *(dy or [g]),
            d1,
            d2,
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            *(w3 or [w2_hi, w2_lo, w2_info]),
            *launcher.four(out),
            count,
            **tiles.part_constants(widths),
            N1=inner,
            N2=outer,
            P1=launcher.tile_width(inner),
            P2=launcher.tile_width(outer),
            **tiles.last_constants(dy[0].shape[1] if dy else 0, outer),
            PRODUCTS=products,
            **tile,
        )
    return out
