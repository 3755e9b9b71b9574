"""Kernels of the edge embedding: lengths, directions, Bessel functions and harmonics, and their gradient.

A program processes EDGES edges, one in each lane for the float64 part. It computes the embedding of width W in tiles
[EDGES, BLOCK_W], and the harmonics up to l_max = L - 1 <= 3 as one tile [EDGES, 16]. ``table`` [2 T, W / 2] holds the type
embeddings of centres, then those of neighbours. Functions of the length are float64 until they are multiplied by weights;
directions are rounded to the network's dtype before the harmonics, which are polynomials of them.

A 64-bit offset leads to the first edge of a program; all offsets from there are 32-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher

MAX_ORDER = 3
"""Highest order of the harmonics, whose tile has 16 columns."""


@triton.jit
def load_edges(vectors, edge_index, node_types, cutoffs, row0, count, T: tl.constexpr, EDGES: tl.constexpr):
    """Load edges: direction, 1 / length, cutoff and the two types."""
    e = tl.arange(0, EDGES)
    valid = e < count - row0
    at = vectors + row0 * 3 + e * 3
    x = tl.load(at, mask=valid, other=1.0)
    y = tl.load(at + 1, mask=valid, other=1.0)
    z = tl.load(at + 2, mask=valid, other=1.0)
    inverse = 1.0 / tl.sqrt(x * x + y * y + z * z)
    at = edge_index + row0 + e
    first = tl.load(node_types + tl.load(at, mask=valid, other=0), mask=valid, other=0).to(tl.int32)
    second = tl.load(node_types + tl.load(at + count, mask=valid, other=0), mask=valid, other=0).to(tl.int32)
    cutoff = tl.load(cutoffs + first * T + second)
    return x * inverse, y * inverse, z * inverse, inverse, cutoff, first, second


@triton.jit
def load_types(table, first, second, w, W: tl.constexpr, T: tl.constexpr):
    """Load the type embeddings [C of the centre | N of the neighbour] of each edge: [EDGES, BLOCK_W]."""
    # the neighbour's row T + second is read from column W / 2 on, so its address is one row of W / 2 numbers back
    row = tl.where((w < W // 2)[None, :], first[:, None], second[:, None] + (T - 1))
    return tl.load(table + row * (W // 2) + w[None, :], mask=(w < W)[None, :], other=0.0)


@triton.jit
def integer_power(x, N: tl.constexpr):
    result = tl.full(x.shape, 1.0, x.dtype)
    for _ in tl.static_range(N):
        result *= x
    return result


@triton.jit
def envelope(x, P: tl.constexpr):
    """u_p(x) and its derivative; an integer P takes multiplications only."""
    if P % 1 == 0:
        lower = integer_power(x, P - 1)
    else:
        lower = tl.exp(tl.log(x) * (P - 1))
    value = 1.0 + lower * x * (x * (P * (P + 2) - x * (P * (P + 1) / 2)) - (P + 1) * (P + 2) / 2)
    slope = lower * (1.0 - x) * (1.0 - x) * (-P * (P + 1) * (P + 2) / 2)
    return tl.where(x < 1.0, value, 0.0), tl.where(x < 1.0, slope, 0.0)


@triton.jit
def sine_cosine(t):
    """sin(2 pi t) and cos(2 pi t) in float64, accurate to 1e-12.

    For t in [-1/2, 1/2] the series of sin(pi t) and cos(pi t) are short; double-angle formulas give the results. The
    functions of CUDA's library cost three times as much, and have a slow path for large arguments.
    """
    t -= tl.floor(t + 0.5)
    q = t * t
    s = -2.1915353447830204e-05 + q * 7.952054001475508e-07
    s = -0.007370430945714348 + q * (0.00046630280576761234 + q * s)
    s = -0.5992645293207919 + q * (0.08214588661112819 + q * s)
    s = t * (3.141592653589793 + q * (-5.167712780049969 + q * (2.550164039877345 + q * s)))
    c = -0.00010463810492484565 + q * 4.303069587032944e-06
    c = -0.02580689139001405 + q * (0.001929574309403922 + q * c)
    c = -1.3352627688545893 + q * (0.23533063035889312 + q * c)
    c = 1.0 + q * (-4.934802200544679 + q * (4.058712126416768 + q * c))
    return 2.0 * s * c, 1.0 - 2.0 * s * s


@triton.jit
def azimuth(x, y, z):
    """Imaginary and real parts of (z + i x)^2, then those of (z + i x)^3."""
    s2, c2 = 2.0 * z * x, z * z - x * x
    return s2, c2, z * s2 + x * c2, z * c2 - x * s2


@triton.jit
def harmonics_tile(x, y, z, L: tl.constexpr):
    """Y_lm of unit vectors in e3nn's convention (polar axis y): [EDGES, 16], zero beyond order L - 1."""
    zero = tl.zeros_like(x)
    y1, y2, y3, y4, y5, y6, y7 = zero, zero, zero, zero, zero, zero, zero
    y8, y9, y10, y11, y12, y13, y14, y15 = zero, zero, zero, zero, zero, zero, zero, zero
    s2, c2, s3, c3 = azimuth(x, y, z)
    if L > 1:
        y1, y2, y3 = 1.7320508075688772 * x, 1.7320508075688772 * y, 1.7320508075688772 * z
    if L > 2:
        y4, y8 = 1.9364916731037085 * s2, 1.9364916731037085 * c2
        y5, y7 = 3.872983346207417 * y * x, 3.872983346207417 * y * z
        y6 = 1.118033988749895 * (3.0 * y * y - 1.0)
    if L > 3:
        y9, y15 = 2.091650066335189 * s3, 2.091650066335189 * c3
        y10, y14 = 5.123475382979799 * y * s2, 5.123475382979799 * y * c2
        q = 1.6201851746019651 * (5.0 * y * y - 1.0)
        y11, y13 = q * x, q * z
        y12 = 1.3228756555322954 * y * (5.0 * y * y - 3.0)
    # the last join supplies the lowest bit of the column's index
    even = tl.join(tl.join(tl.join(zero + 1.0, y8), tl.join(y4, y12)), tl.join(tl.join(y2, y10), tl.join(y6, y14)))
    odd = tl.join(tl.join(tl.join(y1, y9), tl.join(y5, y13)), tl.join(tl.join(y3, y11), tl.join(y7, y15)))
    return tl.reshape(tl.join(even, odd), [x.shape[0], 16])


@triton.jit
def split_even_odd(tile, N: tl.constexpr):
    """Split a tile [EDGES, 2 N] into its even and odd columns."""
    even, odd = tl.split(tl.reshape(tile, [tile.shape[0], N, 2]))
    return even, odd


@triton.jit
def split_columns(tile):
    """Split a tile [EDGES, 4] into its columns."""
    even, odd = split_even_odd(tile, 2)
    g0, g2 = tl.split(even)
    g1, g3 = tl.split(odd)
    return g0, g1, g2, g3


@triton.jit
def harmonics_gradient(g, x, y, z, L: tl.constexpr):
    """Gradient of the sum of g Y by x, y and z, for g [EDGES, 16]. Its component along the direction has no meaning."""
    even, odd = split_even_odd(g, 8)
    first, second = split_even_odd(even, 4)
    _, g4, g8, g12 = split_columns(first)
    g2, g6, g10, g14 = split_columns(second)
    first, second = split_even_odd(odd, 4)
    g1, g5, g9, g13 = split_columns(first)
    g3, g7, g11, g15 = split_columns(second)
    dx, dy, dz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    s2, c2, s3, c3 = azimuth(x, y, z)
    if L > 1:
        dx, dy, dz = 1.7320508075688772 * g1, 1.7320508075688772 * g2, 1.7320508075688772 * g3
    if L > 2:
        ds2, dc2 = 1.9364916731037085 * g4, 1.9364916731037085 * g8
        dx += 3.872983346207417 * y * g5
        dz += 3.872983346207417 * y * g7
        dy += 3.872983346207417 * (x * g5 + z * g7) + 6.708203932499369 * y * g6
        if L > 3:
            ds3, dc3 = 2.091650066335189 * g9, 2.091650066335189 * g15
            q = 1.6201851746019651 * (5.0 * y * y - 1.0)
            dx += q * g11 + c2 * ds3 - s2 * dc3
            dz += q * g13 + s2 * ds3 + c2 * dc3
            dy += 5.123475382979799 * (s2 * g10 + c2 * g14) + 16.201851746019651 * y * (x * g11 + z * g13)
            dy += 3.968626966596886 * (5.0 * y * y - 1.0) * g12
            ds2 += 5.123475382979799 * y * g10 + z * ds3 - x * dc3
            dc2 += 5.123475382979799 * y * g14 + x * ds3 + z * dc3
        dx += 2.0 * (z * ds2 - x * dc2)
        dz += 2.0 * (x * ds2 + z * dc2)
    return dx, dy, dz


@triton.jit
def embedding_kernel(
    vectors,
    edge_index,
    node_types,
    cutoffs,
    roots,
    table,
    weights,
    g,
    harmonics,
    count,
    T: tl.constexpr,
    B: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    EDGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    M: tl.constexpr = L * L
    row0 = tl.program_id(0).to(tl.int64) * EDGES
    ux, uy, uz, inverse, cutoff, first, second = load_edges(
        vectors, edge_index, node_types, cutoffs, row0, count, T, EDGES
    )
    dtype = g.dtype.element_ty
    e = tl.arange(0, EDGES)[:, None]
    m = tl.arange(0, 16)[None, :]
    tile = harmonics_tile(ux.to(dtype), uy.to(dtype), uz.to(dtype), L)
    tl.store(harmonics + row0 * M + e * M + m, tile, mask=(e < count - row0) & (m < M))

    x = 1.0 / (inverse * cutoff)
    u, _ = envelope(x, P)
    scale = u * (inverse * cutoff) * 0.3183098861837907
    for w0 in range(0, W, BLOCK_W):
        w = w0 + tl.arange(0, BLOCK_W)
        total = tl.zeros([EDGES, BLOCK_W], dtype=dtype)
        for n in tl.range(B, loop_unroll_factor=UNROLL):
            sine, _ = sine_cosine(x * (0.5 * tl.load(roots + n)))
            total += (scale * sine).to(dtype)[:, None] * tl.load(weights + n * W + w, mask=w < W, other=0.0)[None, :]
        total *= load_types(table, first, second, w, W, T)
        tl.store(g + row0 * W + e * W + w[None, :], total, mask=(e < count - row0) & (w < W)[None, :])


@triton.jit
def embedding_backward_kernel(
    dg,
    dharmonics0,
    dharmonics1,
    dharmonics2,
    dharmonics3,
    vectors,
    edge_index,
    node_types,
    cutoffs,
    roots,
    table,
    weights,
    dvectors,
    count,
    READERS: tl.constexpr,
    T: tl.constexpr,
    B: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    EDGES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Compute the gradient by the vectors. The gradient by the harmonics is the sum of the first ``READERS`` of dharmonics0 to 3."""
    M: tl.constexpr = L * L
    row0 = tl.program_id(0).to(tl.int64) * EDGES
    ux, uy, uz, inverse, cutoff, first, second = load_edges(
        vectors, edge_index, node_types, cutoffs, row0, count, T, EDGES
    )
    dtype = dg.dtype.element_ty
    e = tl.arange(0, EDGES)[:, None]
    m = tl.arange(0, 16)[None, :]

    # dg / dx has the form of g, with another factor in place of each Bessel function
    inverse_x = inverse * cutoff
    x = 1.0 / inverse_x
    u, du = envelope(x, P)
    of_cosine = u * inverse_x
    of_sine = (du - of_cosine) * inverse_x * 0.3183098861837907
    along = tl.zeros([EDGES], dtype=dtype)
    for w0 in range(0, W, BLOCK_W):
        w = w0 + tl.arange(0, BLOCK_W)
        total = tl.zeros([EDGES, BLOCK_W], dtype=dtype)
        for n in tl.range(B, loop_unroll_factor=UNROLL):
            root = tl.load(roots + n)
            sine, cosine = sine_cosine(x * (0.5 * root))
            slope = (of_cosine * root * cosine + of_sine * sine).to(dtype)
            total += slope[:, None] * tl.load(weights + n * W + w, mask=w < W, other=0.0)[None, :]
        total *= load_types(table, first, second, w, W, T)
        inside = (e < count - row0) & (w < W)[None, :]
        along += tl.sum(total * tl.load(dg + row0 * W + e * W + w[None, :], mask=inside, other=0.0), axis=1)

    dharmonics = (dharmonics0, dharmonics1, dharmonics2, dharmonics3)
    tile = tl.zeros([EDGES, 16], dtype=dtype)
    for k in tl.static_range(READERS):
        tile += tl.load(dharmonics[k] + row0 * M + e * M + m, mask=(e < count - row0) & (m < M), other=0.0)
    dx, dy, dz = harmonics_gradient(tile, ux.to(dtype), uy.to(dtype), uz.to(dtype), L)
    dx, dy, dz = dx.to(tl.float64), dy.to(tl.float64), dz.to(tl.float64)
    along = along.to(tl.float64) / cutoff - inverse * (dx * ux + dy * uy + dz * uz)
    e = tl.arange(0, EDGES)
    at = dvectors + row0 * 3 + e * 3
    tl.store(at, along * ux + inverse * dx, mask=e < count - row0)
    tl.store(at + 1, along * uy + inverse * dy, mask=e < count - row0)
    tl.store(at + 2, along * uz + inverse * dz, mask=e < count - row0)


def _embedding_constants(table: Tensor, weights: Tensor, p: float, l_max: int) -> dict:
    bessels, width = weights.shape
    # 32 edges for each warp; with fewer, the compiler repeats the float64 part in every lane of a row
    return {
        "T": table.shape[0] // 2,
        "B": bessels,
        "W": width,
        "BLOCK_W": min(launcher.tile_width(width), 32),
        "L": l_max + 1,
        "P": int(p) if p == int(p) else p,
        "EDGES": 64,
        "UNROLL": 1,
        "num_warps": 2,
    }


@triton_op("nequip_md::edge_embedding_triton", mutates_args={})
def edge_embedding(
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    table: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> list[Tensor]:
    count, constants = vectors.shape[0], _embedding_constants(table, weights, p, l_max)
    g, harmonics = weights.new_empty((count, weights.shape[1])), weights.new_empty((count, (l_max + 1) ** 2))
    launcher.launch(
        embedding_kernel,
        (triton.cdiv(count, constants["EDGES"]),),
        vectors,
        edge_index,
        node_types,
        cutoffs,
        roots,
        table,
        weights,
        g,
        harmonics,
        count,
        **constants,
    )
    return [g, harmonics]


@triton_op("nequip_md::edge_embedding_backward_triton", mutates_args={})
def edge_embedding_backward(
    dg: Tensor,
    dharmonics: list[Tensor],
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    table: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> Tensor:
    count, constants = vectors.shape[0], _embedding_constants(table, weights, p, l_max)
    dvectors = torch.empty_like(vectors)
    launcher.launch(
        embedding_backward_kernel,
        (triton.cdiv(count, constants["EDGES"]),),
        dg,
        *launcher.four(dharmonics),
        vectors,
        edge_index,
        node_types,
        cutoffs,
        roots,
        table,
        weights,
        dvectors,
        count,
        READERS=len(dharmonics),
        **constants,
    )
    return dvectors
