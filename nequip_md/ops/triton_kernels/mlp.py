"""Kernels of multilayer perceptrons on edges, with fp32-accurate products on the tensor cores.

Arithmetic
    A product C = A B of fp32 matrices is computed from halves (Ootomo and Yokota, Int. J. High Perform. Comput. Appl. 36,
    475 (2022)): s a = a_hi + a_lo and t b = b_hi + b_lo, each half fp16, and
    C = (a_lo b_hi + a_hi b_lo + a_hi b_hi) / (s t), accumulated in fp32. With ``PRODUCTS`` = 1 only a_hi b_hi is taken,
    whose error is that of TF32.

Scales
    fp16 ends at 65,504, so each row of A has its own power of two s, from a bound on its entries: the row's Euclidean
    norm for what is read from memory, and for what a layer makes, the norm of its input row times the largest column norm
    of its matrix (Cauchy-Schwarz; |silu(x)| <= |x| and |silu'(x)| < 1.1). The bound is strict, so nothing can overflow,
    and it may be loose: the two halves span 40 binary digits, of which 24 are needed. A row that is not finite gives NaN;
    a row smaller than 1e-15 loses relative accuracy by and by.

Tiles
    ``ROWS`` edges for each program. The hidden layer is made ``CHUNK`` columns at a time and multiplied into the next
    layer's sum at once, so a two-layer network needs one pass and only its input and output tiles are held.
    Inputs come in up to four parts, side by side, which spares their concatenation. All widths are powers of two here;
    the weights are padded with zeros (:func:`nequip_md.ops.cuda.split`).

Results
    A result of the tensor cores is written, and what multiplies one is read, as its threads hold it (:func:`fragment`):
    otherwise Triton brings it into another order through shared memory, with two barriers for every chunk.
    The forward kernels leave silu' for the backward ones, which then need no exponential; with ``PRODUCTS`` = 1 as fp16.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

TOWARDS_ZERO: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
"""How tensor cores round; the interpreter's products on the CPU round to the nearest number."""
THREADS_FROM_LAST_AXIS: tl.constexpr = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))


@triton.jit
def power_of_two(bound):
    """The power of two s with 2^14 <= s bound < 2^15, as fp32, at most 2^64.

    A norm below 1e-19 is made of squares that vanish, so it bounds nothing; 2^64 is small enough for such a row.
    """
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    field = tl.minimum(tl.maximum(268 - exponent, 1), 127 + 64)
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_power_of_two(s):
    field = 254 - ((s.to(tl.int32, bitcast=True) >> 23) & 255)
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def unscaled(scale, info, K: tl.constexpr, PRODUCTS: tl.constexpr):
    """What a product over ``K`` columns of rows times ``scale`` has to be multiplied by.

    Tensor cores round towards zero whenever they add to a sum (Fasi, Higham, Mikaitis and Pranesh, PeerJ Comput. Sci. 7, e330 (2021)), as
    they do for every 16 columns. On average over numbers of either sign that takes a third of 2^-24 of the sum, each time.
    """
    if TOWARDS_ZERO:
        return inverse_power_of_two(scale) * (tl.load(info) * (1.0 + K * PRODUCTS / 48.0 / 16777216.0))
    return inverse_power_of_two(scale) * tl.load(info)


@triton.jit
def halves(a):
    hi = a.to(tl.float16)
    return hi, (a - hi.to(tl.float32)).to(tl.float16)


@triton.jit
def product(a_hi, a_lo, b_hi, b_lo, total, PRODUCTS: tl.constexpr):
    if PRODUCTS == 3:
        total = tl.dot(a_lo, b_hi, total)
        total = tl.dot(a_hi, b_lo, total)
    return tl.dot(a_hi, b_hi, total)


@triton.jit
def silu_and_derivative(x):
    """silu(x) and silu'(x) of s = 1 / (1 + e), e = exp(-x): x s and s + x s (1 - s), with 1 - s = e s.

    The quotient is made as a square, since a division takes many instructions. e stays finite, so e s has no NaN.
    """
    e = tl.exp2(tl.minimum(x * -1.4426950408889634, 126.0))
    root = tl.rsqrt(1.0 + e)
    s = root * root
    h = x * s
    return h, s + h * (e * s)


@triton.jit
def load_rows(x, row0, count, WIDTH: tl.constexpr, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] of x [count, WIDTH] from (row0, column0) on, zero outside. row0 is 64-bit, all else 32-bit offsets."""
    row = tl.arange(0, ROWS)
    column = column0 + tl.arange(0, COLUMNS)
    inside = (row < count - row0)[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + row0 * WIDTH + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@triton.jit
def load_parts(
    x0,
    x1,
    x2,
    x3,
    row0,
    count,
    PARTS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    K3: tl.constexpr,
    ROWS: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    B3: tl.constexpr,
):
    """A tile of each part of an input, and the sums of squares of its rows.

    Parts that are not there repeat the first; what is made of them is never used.
    """
    part0 = load_rows(x0, row0, count, K0, 0, ROWS, B0)
    part1, part2, part3 = part0, part0, part0
    square = tl.sum(part0 * part0, axis=1)
    if PARTS > 1:
        part1 = load_rows(x1, row0, count, K1, 0, ROWS, B1)
        square += tl.sum(part1 * part1, axis=1)
    if PARTS > 2:
        part2 = load_rows(x2, row0, count, K2, 0, ROWS, B2)
        square += tl.sum(part2 * part2, axis=1)
    if PARTS > 3:
        part3 = load_rows(x3, row0, count, K3, 0, ROWS, B3)
        square += tl.sum(part3 * part3, axis=1)
    return part0, part1, part2, part3, square


@triton.jit
def fragment(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] with six axes, in an order for which Triton gives a store to the threads that hold the values.

    A warp holds 16 rows of a result: lane 4 a + b the rows a and a + 8, and of every 8 columns 2 b and 2 b + 1. Threads of
    a store go along the last axis, then along those whose addresses are not adjacent: from the last one on or, before
    Triton 3.7, from the first one on.
    """
    values = tl.reshape(values, [ROWS // 16, 2, 8, COLUMNS // 8, 4, 2])
    return tl.permute(values, (3, 1, 0, 2, 4, 5) if THREADS_FROM_LAST_AXIS else (4, 2, 0, 1, 3, 5))


@triton.jit
def from_fragment(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.reshape(
        tl.permute(values, (2, 1, 3, 0, 4, 5) if THREADS_FROM_LAST_AXIS else (2, 3, 1, 4, 0, 5)), [ROWS, COLUMNS]
    )


@triton.jit
def fragment_rows(ROWS: tl.constexpr):
    """Row of each element of a :func:`fragment`."""
    half, lane = tl.arange(0, 2) * 8, tl.arange(0, 8)
    if THREADS_FROM_LAST_AXIS:
        within = half[None, :, None, None, None, None] + lane[None, None, None, :, None, None]
    else:
        within = lane[None, :, None, None, None, None] + half[None, None, None, :, None, None]
    return within + tl.arange(0, ROWS // 16)[None, None, :, None, None, None] * 16


@triton.jit
def fragment_columns(COLUMNS: tl.constexpr):
    group, lane = tl.arange(0, COLUMNS // 8) * 8, tl.arange(0, 4) * 2
    if THREADS_FROM_LAST_AXIS:
        pair = group[:, None, None, None, None, None] + lane[None, None, None, None, :, None]
    else:
        pair = lane[:, None, None, None, None, None] + group[None, None, None, None, :, None]
    return pair + tl.arange(0, 2)[None, None, None, None, None, :]


@triton.jit
def load_fragment(x, row0, count, WIDTH: tl.constexpr, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """As :func:`load_rows`, for what multiplies or adds to a result of the tensor cores."""
    row, column = fragment_rows(ROWS), column0 + fragment_columns(COLUMNS)
    inside = (row < count - row0) & (column < WIDTH)
    values = tl.load(x + row0 * WIDTH + (row * WIDTH + column), mask=inside, other=0.0)
    return from_fragment(values, ROWS, COLUMNS)


@triton.jit
def store_fragment(out, values, row0, count, WIDTH: tl.constexpr, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = fragment_rows(ROWS), column0 + fragment_columns(COLUMNS)
    inside = (row < count - row0) & (column < WIDTH)
    values = fragment(values.to(out.dtype.element_ty), ROWS, COLUMNS)
    tl.store(out + row0 * WIDTH + (row * WIDTH + column), values, mask=inside)


@triton.jit
def weight_tile(w, row0, rows: tl.constexpr, column0, columns: tl.constexpr, stride: tl.constexpr):
    return tl.load(w + (row0 + tl.arange(0, rows))[:, None] * stride + (column0 + tl.arange(0, columns))[None, :])


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
    """out [count, N] = x [count, K] W, or x W^T with ``TRANSPOSED``; W is stored [PADDED_K, PADDED_N] ([PADDED_N, PADDED_K]).

    ``THEN`` is what comes after: "silu" writes silu of the product and, into d [count, N], silu'.
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
        x_hi, x_lo = halves(part * scale[:, None])
        if TRANSPOSED:
            b_hi = tl.trans(weight_tile(w_hi, column0, BLOCK_N, k0, CHUNK, PADDED_K))
            b_lo = tl.trans(weight_tile(w_lo, column0, BLOCK_N, k0, CHUNK, PADDED_K))
        else:
            b_hi = weight_tile(w_hi, k0, CHUNK, column0, BLOCK_N, PADDED_N)
            b_lo = weight_tile(w_lo, k0, CHUNK, column0, BLOCK_N, PADDED_N)
        total = product(x_hi, x_lo, b_hi, b_lo, total, PRODUCTS)
    total *= unscaled(scale, w_info, K, PRODUCTS)[:, None]
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
    """out [N, M, U] = x [N, M, K] W_l, each order l with its own matrix; W [L, PADDED_K, PADDED_U], or its transpose.

    The second index of the grid is l; the rows of order l are the pairs (n, m) with m in l. The third is a block of columns.
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
        x_hi, x_lo = halves(part * scale[:, None])
        if TRANSPOSED:
            b_hi = tl.trans(weight_tile(w_hi, l * PADDED_U + column0, BLOCK_U, k0, CHUNK, PADDED_K))
            b_lo = tl.trans(weight_tile(w_lo, l * PADDED_U + column0, BLOCK_U, k0, CHUNK, PADDED_K))
        else:
            b_hi = weight_tile(w_hi, l * PADDED_K + k0, CHUNK, column0, BLOCK_U, PADDED_U)
            b_lo = weight_tile(w_lo, l * PADDED_K + k0, CHUNK, column0, BLOCK_U, PADDED_U)
        total = product(x_hi, x_lo, b_hi, b_lo, total, PRODUCTS)
    total *= unscaled(scale, w_info, K, PRODUCTS)[:, None]
    u = column0 + tl.arange(0, BLOCK_U)
    tl.store(out + at[:, None] * U + u[None, :], total, mask=valid & (u < U)[None, :])


@triton.jit
def second_sum(
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
    """silu(x W1) W2 for one tile of rows; silu'(x W1) is stored in ``d1`` [d_count, N1] from row ``d_row0`` on."""
    part0, part1, part2, part3, square = load_parts(
        x0, x1, x2, x3, row0, count, PARTS, K0, K1, K2, K3, ROWS, B0, B1, B2, B3
    )
    norm = tl.sqrt(square)
    scale1 = power_of_two(norm)
    scale2 = power_of_two(norm * tl.load(w1_info + 1))
    columns: tl.constexpr = K0 + (K1 if PARTS > 1 else 0) + (K2 if PARTS > 2 else 0) + (K3 if PARTS > 3 else 0)
    unscale1 = unscaled(scale1, w1_info, columns, PRODUCTS)[:, None]
    unscale2 = unscaled(scale2, w2_info, N1, PRODUCTS)[:, None]
    x0_hi, x0_lo = halves(part0 * scale1[:, None])
    x1_hi, x1_lo = halves(part1 * scale1[:, None])
    x2_hi, x2_lo = halves(part2 * scale1[:, None])
    x3_hi, x3_lo = halves(part3 * scale1[:, None])

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
        h_hi, h_lo = halves(h * scale2[:, None])
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
def through_transposed(
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
    """total + t W^T for ``rows`` rows of W, of ``CHUNK`` columns each; W has ``P1`` columns."""
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
    spare,
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
    """(g2 W2^T * d1) W1^T for one tile of rows, in the parts of x; those that are not there are zeros.

    With ``LOW_TO_SHARED`` the lower half of g2 goes through ``spare``, fp32 [ROWS, P2] or more, which makes Triton put it into
    shared memory. In registers, both halves may leave too few of them: the compiler then waits for every single instruction
    of the tensor cores (ptxas says so, C7512).
    """
    norm = tl.sqrt(tl.sum(g2 * g2, axis=1))
    scale2 = power_of_two(norm)
    scale1 = power_of_two(norm * tl.load(w2_info + 2) * 1.1)
    unscale2 = (unscaled(scale2, w2_info, P2, PRODUCTS) * scale1)[:, None]
    unscale1 = unscaled(scale1, w1_info, N1, PRODUCTS)[:, None]
    g_hi, g_lo = halves(g2 * scale2[:, None])
    if LOW_TO_SHARED:
        low = spare.to(tl.pointer_type(tl.float16))
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
        t_hi, t_lo = halves(t * unscale2 * d)
        total0 = through_transposed(t_hi, t_lo, w1_hi, w1_lo, 0, B0, c0, CHUNK, P1, total0, PRODUCTS)
        if PARTS > 1:
            total1 = through_transposed(t_hi, t_lo, w1_hi, w1_lo, B0, B1, c0, CHUNK, P1, total1, PRODUCTS)
        if PARTS > 2:
            total2 = through_transposed(t_hi, t_lo, w1_hi, w1_lo, B0 + B1, B2, c0, CHUNK, P1, total2, PRODUCTS)
        if PARTS > 3:
            total3 = through_transposed(t_hi, t_lo, w1_hi, w1_lo, B0 + B1 + B2, B3, c0, CHUNK, P1, total3, PRODUCTS)
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
    """out = silu(p2), p2 = silu(p1) W2, p1 = x W1; x [count, K0 + K1 + ...], W1 [B0 + B1 + ..., P1], W2 [P1, P2].

    Beside it d1 = silu'(p1) [count, N1], d2 = silu'(p2) [count, N2] and, unless N3 = 0, y = out W3 [count, N3], W3 [P2, P3].
    """
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    total = second_sum(
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
        unscale = unscaled(scale, w3_info, N2, PRODUCTS)[:, None]
        h_hi, h_lo = halves(h * scale[:, None])
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
    """dx = ((g2 * d2) W2^T * d1) W1^T, in the parts of x; g2 = g or, unless N3 = 0, g + dy W3^T."""
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
            y_hi, y_lo = halves(part * scale[:, None])
            total = through_transposed(y_hi, y_lo, w3_hi, w3_lo, 0, P2, n0, BLOCK3, P3, total, PRODUCTS)
        total *= unscaled(scale, w3_info, N3, PRODUCTS)[:, None]
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
    """energy = v silu(silu(x W1) W2) + r x and its gradient by x, in one pass; r [B0 + B1 + ...], v [P2], padded with zeros.

    With ``SCALED``, both are multiplied by ``factor`` [count].

    Each program takes every num_programs-th block of rows and keeps silu'(x W1) in its own [ROWS, P1 + P2] of ``scratch``, which
    never leaves the second-level cache.
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
        total = second_sum(
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

        # backward: v is the gradient of the hidden layer; the derivative was written by other threads of this program
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
