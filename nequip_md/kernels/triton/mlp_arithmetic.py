"""Kernels of multilayer perceptrons on edges, with fp32-accurate products on the tensor cores.

Arithmetic
    Each fp32 matrix is split into two fp16 matrices, its high and low parts (Ootomo and Yokota, Int. J. High Perform.
    Comput. Appl. 36, 475 (2022)): s A = A_hi + A_lo and t B = B_hi + B_lo. The product is
    A B = (A_lo B_hi + A_hi B_lo + A_hi B_hi) / (s t), accumulated in fp32. With ``PRODUCTS`` = 1 only A_hi B_hi is computed,
    whose error is that of TF32.

Scales
    The largest fp16 number is 65,504. So each row of A has its own power of two s, which follows from a bound on the row's
    entries: the Euclidean norm for a row read from memory; for the output of a layer, the norm of its input row times the
    largest column norm of its matrix (Cauchy-Schwarz; |silu(x)| <= |x| and |silu'(x)| < 1.1). The bound is strict, so
    nothing can overflow. It may be loose, since the two parts span 40 bits, of which 24 are needed. A row that is not finite
    gives NaN. Rows smaller than 1e-15 gradually lose relative accuracy.

Tiles
    A program processes ``ROWS`` edges. It computes the hidden layer ``CHUNK`` columns at a time and multiplies them into the
    next layer's accumulator at once, so two layers take one pass and only input and output tiles are kept. The input
    consists of up to four parts side by side, which need not be concatenated. All widths are powers of two here; the
    weights are padded with zeros (:func:`nequip_md.kernels.triton.weights.split`).

Results
    An accumulator of the tensor cores is stored, and its factors and summands are loaded, in the layout in which threads
    hold it (:func:`fragment`); otherwise Triton changes the layout through shared memory, with two barriers for every chunk.
    The forward kernels store silu' for the backward kernels, which then need no exponential; with ``PRODUCTS`` = 1 in fp16.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

TOWARDS_ZERO: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
"""Whether products round towards zero, as tensor cores do; the interpreter's products on the CPU round to the nearest number."""


THREADS_FROM_LAST_AXIS: tl.constexpr = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))


@triton.jit
def power_of_two(bound):
    """The power of two s with 2^14 <= s bound < 2^15, as fp32, at most 2^64.

    The squares in a norm below 1e-19 underflow, so it is no bound; 2^64 is small enough for such a row.
    """
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    field = tl.minimum(tl.maximum(268 - exponent, 1), 127 + 64)
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_power_of_two(s):
    field = 254 - ((s.to(tl.int32, bitcast=True) >> 23) & 255)
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def unscale_factor(scale, info, K: tl.constexpr, PRODUCTS: tl.constexpr):
    """Factor for the product over ``K`` columns of rows that were multiplied by ``scale``.

    It undoes the scaling and compensates for rounding: tensor cores round towards zero whenever they add to an accumulator (Fasi, Higham,
    Mikaitis and Pranesh, PeerJ Comput. Sci. 7, e330 (2021)), once for every 16 columns. For terms of either sign, each addition takes
    on average a third of 2^-24 of the sum.
    """
    if TOWARDS_ZERO:
        return inverse_power_of_two(scale) * (tl.load(info) * (1.0 + K * PRODUCTS / 48.0 / 16777216.0))
    return inverse_power_of_two(scale) * tl.load(info)


@triton.jit
def split_fp16(a):
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
    """silu(x) = x s and silu'(x) = s + x s (1 - s), where s = 1 / (1 + e), e = exp(-x) and 1 - s = e s.

    s is computed as the square of a reciprocal square root, since a division takes many instructions. e is kept finite, so that e s
    cannot be NaN.
    """
    e = tl.exp2(tl.minimum(x * -1.4426950408889634, 126.0))
    root = tl.rsqrt(1.0 + e)
    s = root * root
    h = x * s
    return h, s + h * (e * s)


@triton.jit
def load_rows(x, row0, count, WIDTH: tl.constexpr, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile [ROWS, COLUMNS] of x [count, WIDTH] from (row0, column0) on, zero outside; row0 is 64-bit, other offsets are 32-bit."""
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
    """Load a tile of each part of an input, and compute the sum of squares of each row.

    Parts beyond ``PARTS`` repeat the first one; no result depends on them.
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
    """Reshape a tile [ROWS, COLUMNS] to six axes, so that Triton lets each thread store the values that it holds.

    A warp holds 16 rows of an accumulator: lane 4 a + b has rows a and a + 8, and of every 8 columns 2 b and 2 b + 1. Triton
    distributes a store over threads along the last axis first, then along those whose addresses are not adjacent: beginning
    with the last of them or, before Triton 3.7, with the first.
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
    group, lane = tl.arange(0, 2) * 8, tl.arange(0, 8)
    if THREADS_FROM_LAST_AXIS:
        within = group[None, :, None, None, None, None] + lane[None, None, None, :, None, None]
    else:
        within = lane[None, :, None, None, None, None] + group[None, None, None, :, None, None]
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
    """The same as :func:`load_rows`, for a factor or summand of an accumulator of the tensor cores."""
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
