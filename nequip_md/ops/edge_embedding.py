r"""The embedding of edges, which an Allegro model computes from vectors and types before its first MLP, as one operator.

With the length r of the edge, its direction u, its scaled length x = r / r_c(t_i, t_j) and 2 W numbers for each type,

.. math:: g_{e} = [C_{t_i} | N_{t_j}] \odot \sum_n \frac{\sin(\rho_n \pi x)}{\pi x} u_p(x) \, w_n, \qquad Y_{e,lm} = Y_{lm}(u)

Geometry is float64; the network's dtype is that of C, N and w. There are derivatives of any order by the vectors and by
trainable tensors. The first derivative by the vectors is an operator again.
"""

from __future__ import annotations

from math import factorial, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from nequip_md.ops._operator import define, needed, vector_jacobian_products


def envelope(x: Tensor, p: float) -> Tensor:
    """Polynomial cutoff u_p(x): 1 at 0, and 0 with two derivatives at and beyond x = 1.

    u_p(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)   (Gasteiger et al., arXiv 2003.03123, eq. 8)
    """
    power = x.pow(p)
    value = 1.0 + power * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return torch.where(x < 1.0, value, 0.0)


def _envelope_derivative(x: Tensor, p: float) -> Tensor:
    return torch.where(x < 1.0, -p * (p + 1) * (p + 2) / 2 * x.pow(p - 1) * (1 - x).square(), 0.0)


def harmonics_and_derivative(unit: Tensor, l_max: int, with_derivative: bool = True) -> tuple[Tensor, Tensor | None]:
    """Real spherical harmonics of unit vectors, and a derivative of them.

    e3nn's convention (polar axis y, sum_m Y_lm^2 = 2l + 1), from the recursion of the associated Legendre functions:
    Y_lm = N_lm Q_l^|m|(y) times the imaginary (m < 0) or real (m >= 0) part of (z + i x)^|m|.

    Args:
        unit: [E, 3].

    Returns:
        [E, (l_max + 1)^2], and the gradient of this form [E, (l_max + 1)^2, 3]. Only its component orthogonal to ``unit`` has a
        meaning, since other forms agree on the unit sphere and differ elsewhere.
    """
    x, y, z = unit.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    sine, cosine = [zero], [one]
    for m in range(l_max):
        sine, cosine = [*sine, z * sine[m] + x * cosine[m]], [*cosine, z * cosine[m] - x * sine[m]]
    values: dict[tuple[int, int], Tensor] = {}
    gradients: dict[tuple[int, int], Tensor] = {}
    for m in range(l_max + 1):
        # Q_m^m is a number; dq is the derivative of q = Q_l^m by y
        before, d_before, q, dq = zero, zero, factorial(2 * m) / (2**m * factorial(m)) * one, zero
        for l in range(m, l_max + 1):
            if l > m:
                before, d_before, q, dq = (
                    q,
                    dq,
                    ((2 * l - 1) * y * q - (l + m - 1) * before) / (l - m),
                    ((2 * l - 1) * (q + y * dq) - (l + m - 1) * d_before) / (l - m),
                )
            norm = sqrt((2 * l + 1) * (2 if m else 1) * factorial(l - m) / factorial(l + m))
            values[l, m] = norm * q * cosine[m]
            if m:
                values[l, -m] = norm * q * sine[m]
            if not with_derivative:
                continue
            lower_s, lower_c = (m * sine[m - 1], m * cosine[m - 1]) if m else (zero, zero)
            gradients[l, m] = norm * torch.stack([-q * lower_s, dq * cosine[m], q * lower_c], dim=-1)
            if m:
                gradients[l, -m] = norm * torch.stack([q * lower_c, dq * sine[m], q * lower_s], dim=-1)
    order = sorted(values)
    harmonics = torch.stack([values[key] for key in order], dim=-1)
    return harmonics, torch.stack([gradients[key] for key in order], dim=1) if with_derivative else None


class _Edge(NamedTuple):
    length: Tensor
    unit: Tensor
    cutoff: Tensor
    types: Tensor
    """[C of the centre | N of the neighbour], [E, W]"""


def _edge(
    vectors: Tensor, edge_index: Tensor, node_types: Tensor, cutoffs: Tensor, centre: Tensor, neighbour: Tensor
) -> _Edge:
    first, second = (node_types.index_select(0, end) for end in edge_index.unbind(0))
    length = vectors.square().sum(dim=-1).sqrt()
    cutoff = cutoffs.view(-1).index_select(0, first * cutoffs.shape[0] + second)
    types = torch.cat([centre.index_select(0, first), neighbour.index_select(0, second)], dim=-1)
    return _Edge(length, vectors / length.unsqueeze(-1), cutoff, types)


def _reference(
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    centre: Tensor,
    neighbour: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> tuple[Tensor, Tensor]:
    edge = _edge(vectors, edge_index, node_types, cutoffs, centre, neighbour)
    x = (edge.length / edge.cutoff).unsqueeze(-1)
    basis = torch.sin(pi * x * roots) / (pi * x) * envelope(x, p)
    harmonics, _ = harmonics_and_derivative(edge.unit, l_max, with_derivative=False)
    return edge.types * (basis.to(weights.dtype) @ weights), harmonics.to(weights.dtype)


def _backward_reference(
    dg: Tensor,
    dharmonics: list[Tensor],
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    centre: Tensor,
    neighbour: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> Tensor:
    edge = _edge(vectors, edge_index, node_types, cutoffs, centre, neighbour)
    x = (edge.length / edge.cutoff).unsqueeze(-1)
    u, phase = envelope(x, p), pi * x * roots
    slope = roots * torch.cos(phase) / x * u + torch.sin(phase) / (pi * x) * (_envelope_derivative(x, p) - u / x)
    along = (slope * ((dg * edge.types) @ weights.T)).sum(dim=-1, keepdim=True) / edge.cutoff.unsqueeze(-1)
    _, derivative = harmonics_and_derivative(edge.unit, l_max)
    across = (sum(dharmonics).unsqueeze(-1) * derivative).sum(dim=1)
    across = (across - (across * edge.unit).sum(dim=-1, keepdim=True) * edge.unit) / edge.length.unsqueeze(-1)
    return along * edge.unit + across


def _setup(ctx, inputs, output):
    *tensors, ctx.p, ctx.l_max = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dg, dharmonics):
    tensors, numbers = list(ctx.saved_tensors), (ctx.p, ctx.l_max)
    by_vectors, *by_weights = needed(ctx)
    d: list[Tensor | None] = [None] * len(tensors)
    if any(by_weights):
        d = vector_jacobian_products(
            lambda *t: _reference(*t, *numbers), tensors, [False, *by_weights], (dg, dharmonics)
        )
    if by_vectors:
        cotangents = dg.contiguous(), [dharmonics.contiguous()]
        d[0] = torch.ops.nequip_md.edge_embedding_backward(*cotangents, *tensors, *numbers)
    return *d, None, None


def _backward_setup(ctx, inputs, output):
    dg, dharmonics, *tensors, ctx.p, ctx.l_max = inputs
    ctx.parts = len(dharmonics)
    ctx.save_for_backward(dg, *dharmonics, *tensors)


def _double_backward(ctx, v):
    parts = ctx.parts

    def gradient(dg, *rest):
        return _backward_reference(dg, rest[:parts], *rest[parts:], ctx.p, ctx.l_max)

    d = vector_jacobian_products(gradient, list(ctx.saved_tensors), needed(ctx), [v])
    return d[0], d[1 : 1 + parts], *d[1 + parts :], None, None


_ARGUMENTS = (
    "Tensor vectors, Tensor edge_index, Tensor node_types, Tensor cutoffs, Tensor roots, Tensor centre, "
    "Tensor neighbour, Tensor weights, float p, int l_max"
)
define(f"edge_embedding({_ARGUMENTS}) -> (Tensor, Tensor)", _reference, backward=_backward, setup_context=_setup)
define(
    f"edge_embedding_backward(Tensor dg, Tensor[] dharmonics, {_ARGUMENTS}) -> Tensor",
    _backward_reference,
    backward=_double_backward,
    setup_context=_backward_setup,
)


def edge_embedding(
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    centre: Tensor,
    neighbour: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> tuple[Tensor, Tensor]:
    """Types and Bessel functions of an edge as one vector, and its spherical harmonics.

    Args:
        vectors: r_j - r_i, angstrom, float64 [E, 3].
        edge_index: centre and neighbour of each edge, int64 [2, E].
        node_types: int64 [nodes], 0 ... T - 1.
        cutoffs: of ordered pairs of types, angstrom, float64 [T, T].
        roots: factors of the Bessel functions, float64 [B].
        centre, neighbour: type embeddings C and N, [T, W / 2].
        weights: [B, W].
        p: exponent of the envelope.
        l_max: highest order of the harmonics.

    Returns:
        g [E, W], exactly 0 at and beyond the cutoff, and Y [E, (l_max + 1)^2].
    """
    # views, as needed() would count the parameters themselves, which are leaves, as used
    parameters = [t.view_as(t) if t.requires_grad and t.is_leaf else t for t in (roots, centre, neighbour, weights)]
    tensors = (vectors, edge_index, node_types, cutoffs, *parameters)
    return torch.ops.nequip_md.edge_embedding(*(t.contiguous() for t in tensors), p, l_max)
