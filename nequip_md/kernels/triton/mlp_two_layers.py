"""Two layers of an MLP in one pass over its rows: functions that the kernels of hidden layers and of energies share."""

from __future__ import annotations

import triton
import triton.language as tl

from nequip_md.kernels.triton.mlp_arithmetic import (
    load_fragment,
    load_parts,
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
def second_preactivation(
    x0,
    x1,
    x2,
    x3,
    row0,
    count,
    d1,
    d_row0,
    d_count,
    w1_hi,
    w1_lo,
    w1_info,
    w2_hi,
    w2_lo,
    w2_info,
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
    P1: tl.constexpr,
    P2: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute silu(x W1) W2 for one tile of rows; silu'(x W1) is stored in ``d1`` [d_count, N1] from row ``d_row0`` on."""
    part0, part1, part2, part3, square = load_parts(
        x0, x1, x2, x3, row0, count, PARTS, K0, K1, K2, K3, ROWS, B0, B1, B2, B3
    )
    norm = tl.sqrt(square)
    scale1 = power_of_two(norm)
    scale2 = power_of_two(norm * tl.load(w1_info + 1))
    columns: tl.constexpr = K0 + (K1 if PARTS > 1 else 0) + (K2 if PARTS > 2 else 0) + (K3 if PARTS > 3 else 0)
    unscale1 = unscale_factor(scale1, w1_info, columns, PRODUCTS)[:, None]
    unscale2 = unscale_factor(scale2, w2_info, N1, PRODUCTS)[:, None]
    x0_hi, x0_lo = split_fp16(part0 * scale1[:, None])
    x1_hi, x1_lo = split_fp16(part1 * scale1[:, None])
    x2_hi, x2_lo = split_fp16(part2 * scale1[:, None])
    x3_hi, x3_lo = split_fp16(part3 * scale1[:, None])

    total = tl.zeros([ROWS, P2], dtype=tl.float32)
    for c0 in range(0, P1, CHUNK):
        p = tl.zeros([ROWS, CHUNK], dtype=tl.float32)
        p = product(
            x0_hi,
            x0_lo,
            weight_tile(w1_hi, 0, B0, c0, CHUNK, P1),
            weight_tile(w1_lo, 0, B0, c0, CHUNK, P1),
            p,
            PRODUCTS,
        )
        if PARTS > 1:
            p = product(
                x1_hi,
                x1_lo,
                weight_tile(w1_hi, B0, B1, c0, CHUNK, P1),
                weight_tile(w1_lo, B0, B1, c0, CHUNK, P1),
                p,
                PRODUCTS,
            )
        if PARTS > 2:
            p = product(
                x2_hi,
                x2_lo,
                weight_tile(w1_hi, B0 + B1, B2, c0, CHUNK, P1),
                weight_tile(w1_lo, B0 + B1, B2, c0, CHUNK, P1),
                p,
                PRODUCTS,
            )
        if PARTS > 3:
            p = product(
                x3_hi,
                x3_lo,
                weight_tile(w1_hi, B0 + B1 + B2, B3, c0, CHUNK, P1),
                weight_tile(w1_lo, B0 + B1 + B2, B3, c0, CHUNK, P1),
                p,
                PRODUCTS,
            )
        p *= unscale1
        h, d = silu_and_derivative(p)
        store_fragment(d1, d, d_row0, d_count, N1, c0, ROWS, CHUNK)
        h_hi, h_lo = split_fp16(h * scale2[:, None])
        total = product(
            h_hi,
            h_lo,
            weight_tile(w2_hi, c0, CHUNK, 0, P2, P2),
            weight_tile(w2_lo, c0, CHUNK, 0, P2, P2),
            total,
            PRODUCTS,
        )
    return total * unscale2


@triton.jit
def add_product_transposed(
    t_hi,
    t_lo,
    w_hi,
    w_lo,
    row0,
    rows: tl.constexpr,
    c0,
    CHUNK: tl.constexpr,
    P1: tl.constexpr,
    total,
    PRODUCTS: tl.constexpr,
):
    """total + t W^T for ``rows`` rows and ``CHUNK`` columns of W [.., P1]."""
    return product(
        t_hi,
        t_lo,
        tl.trans(weight_tile(w_hi, row0, rows, c0, CHUNK, P1)),
        tl.trans(weight_tile(w_lo, row0, rows, c0, CHUNK, P1)),
        total,
        PRODUCTS,
    )


@triton.jit
def input_gradients(
    g2,
    d1,
    d_row0,
    d_count,
    w1_hi,
    w1_lo,
    w1_info,
    w2_hi,
    w2_lo,
    w2_info,
    scratch,
    LOW_TO_SHARED: tl.constexpr,
    PARTS: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    B3: tl.constexpr,
    N1: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Compute (g2 W2^T * d1) W1^T for one tile of rows, in the parts of x; parts beyond ``PARTS`` are zero.

    With ``LOW_TO_SHARED`` the low part of g2 goes through ``scratch``, fp32 [ROWS, P2] or more, which makes Triton keep it in
    shared memory. If both parts are in registers, these may not suffice: the compiler then serializes the instructions of
    the tensor cores (warning C7512 of ptxas).
    """
    norm = tl.sqrt(tl.sum(g2 * g2, axis=1))
    scale2 = power_of_two(norm)
    scale1 = power_of_two(norm * tl.load(w2_info + 2) * 1.1)
    unscale2 = (unscale_factor(scale2, w2_info, P2, PRODUCTS) * scale1)[:, None]
    unscale1 = unscale_factor(scale1, w1_info, N1, PRODUCTS)[:, None]
    g_hi, g_lo = split_fp16(g2 * scale2[:, None])
    if LOW_TO_SHARED:
        low = scratch.to(tl.pointer_type(tl.float16))
        store_fragment(low, g_lo, 0, ROWS, P2, 0, ROWS, P2)
        tl.debug_barrier()
        g_lo = load_rows(low, 0, ROWS, P2, 0, ROWS, P2)
    total0 = tl.zeros([ROWS, B0], dtype=tl.float32)
    total1 = tl.zeros([ROWS, B1], dtype=tl.float32)
    total2 = tl.zeros([ROWS, B2], dtype=tl.float32)
    total3 = tl.zeros([ROWS, B3], dtype=tl.float32)
    for c0 in range(0, P1, CHUNK):
        t = tl.zeros([ROWS, CHUNK], dtype=tl.float32)
        t = product(
            g_hi,
            g_lo,
            tl.trans(weight_tile(w2_hi, c0, CHUNK, 0, P2, P2)),
            tl.trans(weight_tile(w2_lo, c0, CHUNK, 0, P2, P2)),
            t,
            PRODUCTS,
        )
        d = load_fragment(d1, d_row0, d_count, N1, c0, ROWS, CHUNK)
        t_hi, t_lo = split_fp16(t * unscale2 * d)
        total0 = add_product_transposed(t_hi, t_lo, w1_hi, w1_lo, 0, B0, c0, CHUNK, P1, total0, PRODUCTS)
        if PARTS > 1:
            total1 = add_product_transposed(t_hi, t_lo, w1_hi, w1_lo, B0, B1, c0, CHUNK, P1, total1, PRODUCTS)
        if PARTS > 2:
            total2 = add_product_transposed(t_hi, t_lo, w1_hi, w1_lo, B0 + B1, B2, c0, CHUNK, P1, total2, PRODUCTS)
        if PARTS > 3:
            total3 = add_product_transposed(t_hi, t_lo, w1_hi, w1_lo, B0 + B1 + B2, B3, c0, CHUNK, P1, total3, PRODUCTS)
    return total0 * unscale1, total1 * unscale1, total2 * unscale1, total3 * unscale1


@triton.jit
def store_parts(
    dx0,
    dx1,
    dx2,
    dx3,
    total0,
    total1,
    total2,
    total3,
    row0,
    count,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    B3: tl.constexpr,
):
    store_fragment(dx0, total0, row0, count, K0, 0, ROWS, B0)
    if PARTS > 1:
        store_fragment(dx1, total1, row0, count, K1, 0, ROWS, B1)
    if PARTS > 2:
        store_fragment(dx2, total2, row0, count, K2, 0, ROWS, B2)
    if PARTS > 3:
        store_fragment(dx3, total3, row0, count, K3, 0, ROWS, B3)
