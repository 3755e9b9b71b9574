r"""Contraction of an edge's tensor with a vector that belongs to its centre.

.. math:: q_{e, u} = \sum_l w_{e, l, u} \sum_{m \in l} y_{e, m} \; z_{i(e), m, u}

The edge's tensor T = w y of Allegro's tensor track is never formed: q and its three derivatives are computed from w, y and z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.ops._operator import define
from nequip_md.ops.edge_moment import edge_dot, edge_moment, edge_spread


def _reference(w: Tensor, y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    return (w * edge_spread(y, z, centre, row_ptr, w.shape[1])).sum(dim=1)


def _backward_reference(
    g: Tensor, w: Tensor, y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scaled = g.unsqueeze(1) * w
    dw = g.unsqueeze(1) * edge_spread(y, z, centre, row_ptr, w.shape[1])
    return dw, edge_dot(scaled, z, centre, row_ptr), edge_moment(scaled, y, centre, row_ptr)


def gradient_reference(g, w, y, z, centre, row_ptr):
    dw, dy, dz = _backward_reference(g[0], w, y, z[0], centre, row_ptr)
    for g_k, z_k in zip(g[1:], z[1:]):
        dw_k, dy_k, _ = _backward_reference(g_k, w, y, z_k, centre, row_ptr)
        dw, dy = dw + dw_k, dy + dy_k
    return dw, dy, dz


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, g):
    w, y, z, centre, row_ptr = ctx.saved_tensors
    dw, dy, dz = torch.ops.nequip_md.edge_contract_backward(g.contiguous(), w, y, z, centre, row_ptr)
    return dw, dy, dz, None, None


def _double_backward(ctx, gw, gy, gz):
    # <gw, dw> + <gy, dy> + <gz, dz> = sum_eu g (contract(gw, y, z) + contract(w, gy, z) + contract(w, y, gz))
    g, w, y, z, centre, row_ptr = ctx.saved_tensors
    orders = w.shape[1]
    dg = (
        edge_contract(gw, y, z, centre, row_ptr)
        + edge_contract(w, gy, z, centre, row_ptr)
        + edge_contract(w, y, gz, centre, row_ptr)
    )
    g = g.unsqueeze(1)
    dw = g * (edge_spread(gy, z, centre, row_ptr, orders) + edge_spread(y, gz, centre, row_ptr, orders))
    dy = edge_dot(g * gw, z, centre, row_ptr) + edge_dot(g * w, gz, centre, row_ptr)
    dz = edge_moment(g * gw, y, centre, row_ptr) + edge_moment(g * w, gy, centre, row_ptr)
    return dg, dw, dy, dz, None, None


define(
    "edge_contract(Tensor w, Tensor y, Tensor z, Tensor centre, Tensor row_ptr) -> Tensor",
    _reference,
    backward=_backward,
    setup_context=_setup,
    fake=lambda w, y, z, centre, row_ptr: w.new_empty((w.shape[0], w.shape[2])),
)
define(
    "edge_contract_backward(Tensor g, Tensor w, Tensor y, Tensor z, Tensor centre, Tensor row_ptr)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_reference,
    backward=_double_backward,
    setup_context=_setup,
    fake=lambda g, w, y, z, centre, row_ptr: (w.new_empty(w.shape), y.new_empty(y.shape), z.new_empty(z.shape)),
)


# ---- fused gradients in lowered graphs (nequip_md.lowering.sums), without derivatives ----

define(
    "edge_contract_moment(Tensor g, Tensor w, Tensor y, Tensor centre, Tensor row_ptr) -> Tensor",
    lambda g, w, y, centre, row_ptr: edge_moment(g.unsqueeze(1) * w, y, centre, row_ptr),
    fake=lambda g, w, y, centre, row_ptr: w.new_empty((row_ptr.shape[0] - 1, y.shape[1], w.shape[2])),
)
define(
    "edge_contract_gradient(Tensor[] g, Tensor w, Tensor y, Tensor[] z, Tensor centre, Tensor row_ptr)"
    " -> (Tensor, Tensor, Tensor)",
    gradient_reference,
    fake=lambda g, w, y, z, centre, row_ptr: (w.new_empty(w.shape), y.new_empty(y.shape), z[0].new_empty(z[0].shape)),
)


def edge_contract(w: Tensor, y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    """Scalar part of each edge's tensor after the atom-wise map ``z``.

    Args:
        w: weights of the edge's tensor, [E, L, U], L = l_max + 1.
        y: spherical harmonics, [E, M], M = L^2.
        z: vector of each centre and channel, [N, M, U].
        centre: centre of each edge, ascending, int64 [E].
        row_ptr: offsets of each centre's edges, int64 [N + 1].

    Returns:
        q, [E, U].
    """
    return torch.ops.nequip_md.edge_contract(w.contiguous(), y.contiguous(), z.contiguous(), centre, row_ptr)
