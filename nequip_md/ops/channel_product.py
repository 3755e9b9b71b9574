r"""Weighted Clebsch-Gordan product of two tensors of the same atom, channel by channel.

.. math:: o_{n, c, u} = \sum_t v_t \; w_{p_t, u} \; x_{n, a_t, u} \; y_{n, b_t, u} \; [c_t = c]

over the table of nonzero coefficients t = (p, a, b, c; v). The sum is symmetric in the roles of x, y and o, so the
derivative by x or y is the same operator with the table's rows exchanged; the derivative by w is
``channel_product_weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.ops._operator import define, needed


def _exchange(table: Tensor, rows: tuple[int, int, int]) -> Tensor:
    """The table with other roles: its rows for first, second and output are the given ones; row 0, the path, stays."""
    return torch.stack([table[0], table[rows[0]], table[rows[1]], table[rows[2]]])


def product_reference(x: Tensor, y: Tensor, w: Tensor, table: Tensor, values: Tensor, dim: int) -> Tensor:
    path, first, second, output = table.unbind(0)
    scale = values.unsqueeze(-1) * w.index_select(0, path)
    terms = x.index_select(1, first) * y.index_select(1, second) * scale
    return x.new_zeros((x.shape[0], dim, x.shape[2])).index_add(1, output, terms)


def _product_setup(ctx, inputs, output):
    x, y, w, table, values, _ = inputs
    ctx.save_for_backward(x, y, w, table, values)


def _product_backward(ctx, g):
    x, y, w, table, values = ctx.saved_tensors
    dx = dy = dw = None
    by_first, by_second, by_third, *_ = needed(ctx)
    if by_first:
        dx = channel_product(g, y, w, _exchange(table, (3, 2, 1)), values, x.shape[1])
    if by_second:
        dy = channel_product(x, g, w, _exchange(table, (1, 3, 2)), values, y.shape[1])
    if by_third:
        dw = torch.ops.nequip_md.channel_product_weight(x, y, g, table, values, w.shape[0])
    return dx, dy, dw, None, None, None


def _weight_reference(x: Tensor, y: Tensor, z: Tensor, table: Tensor, values: Tensor, paths: int) -> Tensor:
    path, first, second, output = table.unbind(0)
    terms = (x.index_select(1, first) * y.index_select(1, second) * z.index_select(1, output)).sum(dim=0)
    return x.new_zeros((paths, x.shape[2])).index_add(0, path, values.unsqueeze(-1) * terms)


def _weight_setup(ctx, inputs, output):
    x, y, z, table, values, _ = inputs
    ctx.save_for_backward(x, y, z, table, values)


def _weight_backward(ctx, g):
    x, y, z, table, values = ctx.saved_tensors
    dx = dy = dz = None
    by_first, by_second, by_third, *_ = needed(ctx)
    if by_first:
        dx = channel_product(z, y, g, _exchange(table, (3, 2, 1)), values, x.shape[1])
    if by_second:
        dy = channel_product(x, z, g, _exchange(table, (1, 3, 2)), values, y.shape[1])
    if by_third:
        dz = channel_product(x, y, g, table, values, z.shape[1])
    return dx, dy, dz, None, None, None


define(
    "channel_product(Tensor x, Tensor y, Tensor w, Tensor table, Tensor values, int dim) -> Tensor",
    product_reference,
    backward=_product_backward,
    setup_context=_product_setup,
    fake=lambda x, y, w, table, values, dim: x.new_empty((x.shape[0], dim, x.shape[2])),
)
define(
    "channel_product_weight(Tensor x, Tensor y, Tensor z, Tensor table, Tensor values, int paths) -> Tensor",
    _weight_reference,
    backward=_weight_backward,
    setup_context=_weight_setup,
    fake=lambda x, y, z, table, values, paths: x.new_empty((paths, x.shape[2])),
)


def channel_product(x: Tensor, y: Tensor, w: Tensor, table: Tensor, values: Tensor, dim: int) -> Tensor:
    """Sparse trilinear product within each atom and channel.

    Args:
        x: [N, A, U].
        y: [N, B, U].
        w: path weights, [P, U].
        table: rows path, component of x, component of y, component of the output; int64 [4, T].
        values: coefficient of each entry, [T], in the dtype of ``x``.
        dim: components of the output.

    Returns:
        [N, dim, U].
    """
    return torch.ops.nequip_md.channel_product(x.contiguous(), y.contiguous(), w.contiguous(), table, values, dim)
