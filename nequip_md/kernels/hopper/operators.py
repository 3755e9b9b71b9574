"""Operators that the Hopper kernels implement. Their references read the same arrays of weights as the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.kernels.hopper import layout
from nequip_md.kernels.triton import tiles
from nequip_md.ops import mlp
from nequip_md.ops._operator import define
from nequip_md.ops.channel_product import product_reference
from nequip_md.ops.edge_contract import gradient_reference
from nequip_md.ops.edge_moment import edge_moment


def _pairs(
    stream: Tensor, w1_info: Tensor, w2_info: Tensor, widths: list[int], inner: int, outer: int, transposed: bool
):
    """W1 and W2 from the part of a stream that holds both."""
    panels, chunks, columns = sum(map(layout.num_blocks, widths)), layout.num_blocks(inner), layout.num_blocks(outer)
    if transposed:
        w2, w1 = (layout.from_blocks(b, True).T for b in layout.split_joined(stream, columns, chunks, panels))
    else:
        first, second = layout.split_joined(stream, panels, chunks, columns)
        w1, w2 = layout.from_blocks(first, False), layout.from_blocks(second, True)
    w1, w2 = w1 * w1_info[0], w2 * w2_info[0]
    return layout.remove_padding(w1, widths, inner), layout.remove_padding(w2, [inner], outer)


def _with_empty(tensors: list[Tensor]) -> list[Tensor]:
    """Fill up to the four results of a schema, with empty tensors for parts that the input does not have."""
    return [*tensors, *[tensors[0].new_empty((0, 0))] * (4 - len(tensors))]


def _energy_reference(
    x0, x1, x2, x3, stream, w1_info, w2_info, v, r, factor, widths, inner, outer, products, scaled, instance
):
    parts = [x0, x1, x2, x3][: len(widths)]
    forward, backward = stream.chunk(2)
    w1, w2 = _pairs(forward, w1_info, w2_info, widths, inner, outer, False)
    w1_back, w2_back = _pairs(backward, w1_info, w2_info, widths, inner, outer, True)
    r = layout.remove_padding(r.unsqueeze(1), widths, 1).squeeze(1)
    h, d1, d2 = mlp.hidden_reference(parts, [w1, w2])
    scale = factor.unsqueeze(1) if scaled else 1.0
    gradient = mlp.hidden_backward_reference(v[:outer].expand_as(d2), [d1, d2], [w1_back, w2_back], widths)
    energy = (h @ v[:outer] + torch.cat(parts, dim=-1) @ r).unsqueeze(1) * scale
    return (energy.squeeze(1), *_with_empty([(g + c) * scale for g, c in zip(gradient, r.split(widths))]))


def _hidden_reference(
    x0, x1, x2, x3, stream, w1_info, w2_info, w3_info, widths, inner, outer, last, products, instance
):
    parts, pairs = (
        [x0, x1, x2, x3][: len(widths)],
        layout.num_blocks(inner) * (sum(map(layout.num_blocks, widths)) + layout.num_blocks(outer)),
    )
    h, d1, d2 = mlp.hidden_reference(parts, list(_pairs(stream[:pairs], w1_info, w2_info, widths, inner, outer, False)))
    if last:
        w3 = (
            layout.from_blocks(
                stream[pairs:].unflatten(0, (layout.num_blocks(last), layout.num_blocks(outer))).transpose(0, 1), True
            )
            * w3_info[0]
        )
        y = h @ layout.remove_padding(w3, [outer], last)
    else:
        y = h.new_empty((0, 0))
    stored = tiles.derivative_dtype(products)
    return h, y, d1.to(stored), d2.to(stored)


def _hidden_backward_reference(
    g, dy, d1, d2, stream, w1_info, w2_info, w3_info, widths, inner, outer, last, products, instance
):
    before = layout.num_blocks(last) * layout.num_blocks(outer)
    if last:
        w3 = (
            layout.from_blocks(
                stream[:before].unflatten(0, (layout.num_blocks(last), layout.num_blocks(outer))), False
            ).T
            * w3_info[0]
        )
        g = g + dy @ layout.remove_padding(w3, [outer], last).T
    weights = _pairs(stream[before:], w1_info, w2_info, widths, inner, outer, True)
    return tuple(_with_empty(mlp.hidden_backward_reference(g, [d1.float(), d2.float()], list(weights), widths)))


def _centres(row_ptr: Tensor, edges: int) -> Tensor:
    return torch.repeat_interleave(row_ptr.diff(), output_size=edges)


def _contract_gradient_reference(g0, g1, g2, g3, w, y, z0, z1, z2, z3, row_ptr, layers, instance):
    g, z = [g0, g1, g2, g3][:layers], [z0, z1, z2, z3][:layers]
    return gradient_reference(g, w, y, z, _centres(row_ptr, len(w)), row_ptr)


def _contract_moment_reference(g, w, y, row_ptr, instance):
    return edge_moment(g.unsqueeze(1) * w, y, _centres(row_ptr, len(w)), row_ptr)


def _channel_product_reference(x, y, w, table, values, offsets, dim, instance):
    output = torch.repeat_interleave(offsets.diff(), output_size=table.shape[1])
    return product_reference(x, y, w, torch.cat([table, output.unsqueeze(0)]), values, dim)


ENERGY = define(
    "hopper_energy(Tensor x0, Tensor x1, Tensor x2, Tensor x3, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor v, Tensor r, "
    "Tensor factor, int[] widths, int inner, int outer, int products, int scaled, int instance) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _energy_reference,
)


HIDDEN = define(
    "hopper_hidden(Tensor x0, Tensor x1, Tensor x2, Tensor x3, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor w3_info, "
    "int[] widths, int inner, int outer, int last, int products, int instance) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_reference,
)


HIDDEN_BACKWARD = define(
    "hopper_hidden_backward(Tensor g, Tensor dy, Tensor d1, Tensor d2, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor w3_info, "
    "int[] widths, int inner, int outer, int last, int products, int instance) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_backward_reference,
)


CONTRACT_GRADIENT = define(
    "hopper_contract_gradient(Tensor g0, Tensor g1, Tensor g2, Tensor g3, Tensor w, Tensor y, Tensor z0, Tensor z1, Tensor z2, Tensor z3, "
    "Tensor row_ptr, int layers, int instance) -> (Tensor, Tensor, Tensor)",
    _contract_gradient_reference,
    fake=lambda *a: (a[4].new_empty(a[4].shape), a[5].new_empty(a[5].shape), a[6].new_empty(a[6].shape)),
)


CONTRACT_MOMENT = define(
    "hopper_contract_moment(Tensor g, Tensor w, Tensor y, Tensor row_ptr, int instance) -> Tensor",
    _contract_moment_reference,
    fake=lambda g, w, y, row_ptr, instance: w.new_empty((row_ptr.shape[0] - 1, y.shape[1], w.shape[2])),
)


CHANNEL_PRODUCT = define(
    "hopper_channel_product(Tensor x, Tensor y, Tensor w, Tensor table, Tensor values, Tensor offsets, int dim, int instance) -> Tensor",
    _channel_product_reference,
    fake=lambda x, y, w, table, values, offsets, dim, instance: x.new_empty((x.shape[0], dim, x.shape[2])),
)


OPERATORS = frozenset({ENERGY, HIDDEN, HIDDEN_BACKWARD, CONTRACT_GRADIENT, CONTRACT_MOMENT, CHANNEL_PRODUCT})
