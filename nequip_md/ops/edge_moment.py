r"""The three derivatives of one trilinear form over edges, centres and channels.

.. math:: F(a, y, z) = \sum_{e, m, c} a_{e, l(m), c} \; y_{e, m} \; z_{i(e), m, c}

with the components m = (l, m') of spherical harmonics up to l_max and l(m) their order. If the second axis of ``a`` has size 1,
its single slot serves every l. The fast kernels form no array [E, M, C].

* :func:`edge_moment` = dF/dz: sums over the edges of each centre;
* :func:`edge_spread` = dF/da;
* :func:`edge_dot` = dF/dy.

The functions make their arguments contiguous, as the kernels require.

F is linear in each argument, so the derivatives of these three are again among these three.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from nequip_md.ops._operator import define, needed


def components_of(a: Tensor, components: int) -> Tensor:
    """Repeat the slots of ``a`` [E, L, C] over the components of each l: [E, M, C] (a view where L is 1)."""
    orders = a.shape[1]
    if orders == 1:
        return a.expand(a.shape[0], components, a.shape[2])
    return torch.cat([a[:, l : l + 1].expand(-1, 2 * l + 1, -1) for l in range(orders)], dim=1)


def sum_over_components(x: Tensor, orders: int) -> Tensor:
    """Adjoint of :func:`components_of`: [E, M, C] summed within each l to [E, L, C]."""
    if orders == 1:
        return x.sum(dim=1, keepdim=True)
    return torch.stack([x[:, l * l : (l + 1) ** 2].sum(dim=1) for l in range(orders)], dim=1)


def _check_orders(orders: int, components: int) -> None:
    torch._check(
        orders == 1 or orders == isqrt(components), lambda: f"{orders} orders do not fit {components} components"
    )


# ---- moment -------------------------------------------------------------------------------------------------------


def _moment_reference(a: Tensor, y: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    _check_orders(a.shape[1], y.shape[1])
    products = components_of(a, y.shape[1]) * y.unsqueeze(-1)
    total = a.new_zeros((row_ptr.shape[0] - 1, y.shape[1], a.shape[2]))
    return total.index_add(0, centre, products)


def _save_inputs(ctx, inputs, output):
    first, second, centre, row_ptr = inputs[:4]
    ctx.save_for_backward(first, second, centre, row_ptr)


def _moment_backward(ctx, g):
    a, y, centre, row_ptr = ctx.saved_tensors
    first, second, *_ = needed(ctx)
    da = edge_spread(y, g, centre, row_ptr, a.shape[1]) if first else None
    dy = edge_dot(a, g, centre, row_ptr) if second else None
    return da, dy, None, None


# ---- spread -------------------------------------------------------------------------------------------------------


def _spread_reference(y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor, orders: int) -> Tensor:
    _check_orders(orders, y.shape[1])
    return sum_over_components(y.unsqueeze(-1) * z.index_select(0, centre), orders)


def _spread_backward(ctx, g):
    y, z, centre, row_ptr = ctx.saved_tensors
    first, second, *_ = needed(ctx)
    dy = edge_dot(g, z, centre, row_ptr) if first else None
    dz = edge_moment(g, y, centre, row_ptr) if second else None
    return dy, dz, None, None, None


# ---- dot ----------------------------------------------------------------------------------------------------------


def _dot_reference(a: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    _check_orders(a.shape[1], z.shape[1])
    return (components_of(a, z.shape[1]) * z.index_select(0, centre)).sum(dim=-1)


def _dot_backward(ctx, g):
    a, z, centre, row_ptr = ctx.saved_tensors
    first, second, *_ = needed(ctx)
    da = edge_spread(g, z, centre, row_ptr, a.shape[1]) if first else None
    dz = edge_moment(a, g, centre, row_ptr) if second else None
    return da, dz, None, None


define(
    "edge_moment(Tensor a, Tensor y, Tensor centre, Tensor row_ptr) -> Tensor",
    _moment_reference,
    backward=_moment_backward,
    setup_context=_save_inputs,
    fake=lambda a, y, centre, row_ptr: a.new_empty((row_ptr.shape[0] - 1, y.shape[1], a.shape[2])),
)
define(
    "edge_spread(Tensor y, Tensor z, Tensor centre, Tensor row_ptr, int orders) -> Tensor",
    _spread_reference,
    backward=_spread_backward,
    setup_context=_save_inputs,
    fake=lambda y, z, centre, row_ptr, orders: y.new_empty((y.shape[0], orders, z.shape[2])),
)
define(
    "edge_dot(Tensor a, Tensor z, Tensor centre, Tensor row_ptr) -> Tensor",
    _dot_reference,
    backward=_dot_backward,
    setup_context=_save_inputs,
    fake=lambda a, z, centre, row_ptr: a.new_empty((a.shape[0], z.shape[1])),
)


# ---- the sum of a spread and other gradients in lowered graphs (nequip_md.lowering.sums), without derivative ----


def _spread_add_reference(y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor, starts: list[Tensor]) -> Tensor:
    return _spread_reference(y, z, centre, row_ptr, 1) + sum(starts)


define(
    "edge_spread_add(Tensor y, Tensor z, Tensor centre, Tensor row_ptr, Tensor[] starts) -> Tensor",
    _spread_add_reference,
    fake=lambda y, z, centre, row_ptr, starts: starts[0].new_empty(starts[0].shape),
)


def edge_moment(a: Tensor, y: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum a[e, l(m), c] y[e, m] over the edges e of each centre.

    Args:
        a: [E, L, C] with L = l_max + 1, or L = 1 for the same factor in every l.
        y: [E, M], M = (l_max + 1)^2.
        centre: centre of each edge, ascending, int64 [E].
        row_ptr: offsets of each centre's edges, int64 [N + 1].

    Returns:
        [N, M, C].
    """
    return torch.ops.nequip_md.edge_moment(a.contiguous(), y.contiguous(), centre, row_ptr)


def edge_spread(y: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor, orders: int) -> Tensor:
    """Sum y[e, m] z[i(e), m, c] over the components m of each order l: [E, L, C] from y [E, M] and z [N, M, C].

    ``orders`` is L: l_max + 1, or 1 to sum over all components.
    """
    return torch.ops.nequip_md.edge_spread(y.contiguous(), z.contiguous(), centre, row_ptr, orders)


def edge_dot(a: Tensor, z: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum a[e, l(m), c] z[i(e), m, c] over the channels c: [E, M] from a [E, L, C] and z [N, M, C]."""
    return torch.ops.nequip_md.edge_dot(a.contiguous(), z.contiguous(), centre, row_ptr)
