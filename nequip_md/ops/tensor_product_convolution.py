r"""NequIP's convolution: tensor products of neighbours' features with edges' harmonics, summed over each centre's edges.

All three operators are derivatives of one form, linear in each of x, y, w and g:

.. math:: F(x, y, w, g) = \sum_e \sum_p \sum_{a b c} C^p_{abc} \sum_u x_{j(e), a, u} \; y_{e, b} \; w_{e, p, u} \; g_{i(e), c, p, u}

with paths p that couple one irrep of the features (components a) with one order of the harmonics (components b) to one
irrep of the messages (components c), for each channel u of that irrep ("uvu" in e3nn's words).

* :func:`tensor_product_convolution` = dF/dg, the sum of messages;
* ``tensor_product_convolution_nodes`` = dF/dx;
* ``tensor_product_convolution_edges`` = (dF/dy, dF/dw).

Their derivatives are again among these three. The harmonics have no channels, so each operator contracts C with y first. The
result is a small matrix [a, c] for each edge and path, which multiplies the channels. So a fast kernel needs no array
[E, a, b, c] or [E, messages].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nequip_md.ops._operator import define, needed


class ConvolutionPath(NamedTuple):
    """Layout of one path; the operators' argument ``paths`` holds these fields path after path.

    In a row of x an irrep is stored as [2 l_in + 1, mul], in a row of the messages as [2 l_out + 1, out_channels]. A path writes
    the ``mul`` columns of the latter from ``out_channel`` on.
    """

    l_in: int
    l_edge: int
    l_out: int
    mul: int
    """Number of channels u."""
    x_offset: int
    w_offset: int
    out_offset: int
    out_channels: int
    out_channel: int
    cg_offset: int
    """Offset of the coefficients [2 l_in + 1, 2 l_edge + 1, 2 l_out + 1] in ``cg``."""


def unpack(paths: Sequence[int]) -> Iterator[ConvolutionPath]:
    """The paths in an operator's list of integers."""
    fields = len(ConvolutionPath._fields)
    return (ConvolutionPath(*paths[k : k + fields]) for k in range(0, len(paths), fields))


# ---- one path, on edges -------------------------------------------------------------------------------------------


def coefficients(cg: Tensor, path: ConvolutionPath) -> Tensor:
    """Coefficients of one path, [2 l_in + 1, 2 l_edge + 1, 2 l_out + 1]."""
    shape = (2 * path.l_in + 1, 2 * path.l_edge + 1, 2 * path.l_out + 1)
    return cg.narrow(0, path.cg_offset, shape[0] * shape[1] * shape[2]).view(shape)


def _coupling(cg: Tensor, y: Tensor, path: ConvolutionPath) -> Tensor:
    """Contract the coefficients with the harmonics, sum_b C_abc y_eb: [E, a, c]."""
    c = coefficients(cg, path)
    y = y.narrow(1, path.l_edge**2, c.shape[1])
    return (y @ c.transpose(0, 1).flatten(1)).unflatten(1, (c.shape[0], c.shape[2]))


def _features(x: Tensor, path: ConvolutionPath) -> Tensor:
    """Features of the path's irrep, [E, a, u], from rows of x [E, width of x]."""
    return x.narrow(1, path.x_offset, (2 * path.l_in + 1) * path.mul).unflatten(1, (2 * path.l_in + 1, path.mul))


def _messages(g: Tensor, path: ConvolutionPath) -> Tensor:
    """Messages of the path, [E, c, u], from rows of all messages [E, width of the messages]."""
    components = 2 * path.l_out + 1
    block = g.narrow(1, path.out_offset, components * path.out_channels).unflatten(1, (components, path.out_channels))
    return block.narrow(2, path.out_channel, path.mul)


def _weights(w: Tensor, path: ConvolutionPath) -> Tensor:
    """Weights of the path, [E, 1, u], from rows of all weights [E, weights]."""
    return w.narrow(1, path.w_offset, path.mul).unsqueeze(1)


def _apply(coupling: Tensor, x: Tensor) -> Tensor:
    """Multiply, sum_a A_eac x_eau: [E, c, u]. A product and a sum can be fused, unlike E tiny matrix products."""
    return (coupling.unsqueeze(-1) * x.unsqueeze(2)).sum(dim=1)


def _rows(parts: dict[int, Tensor], width: int, like: Tensor) -> Tensor:
    """Join blocks of columns [E, *], given by their offset, to rows [E, width] that are zero elsewhere."""
    columns, end = [], 0
    for offset, part in sorted(parts.items()):
        if offset > end:
            columns.append(like.new_zeros(like.shape[0], offset - end))
        columns.append(part)
        end = offset + part.shape[1]
    if width > end:
        columns.append(like.new_zeros(like.shape[0], width - end))
    return torch.cat(columns, dim=1)


# ---- dF/dg: sum of messages ---------------------------------------------------------------------------------------


def _sum_reference(x, y, w, centre, neighbour, row_ptr, cg, paths, width):
    nodes = row_ptr.shape[0] - 1
    xj = x.index_select(0, neighbour)
    blocks: dict[int, list[Tensor]] = {}
    for path in sorted(unpack(paths), key=lambda path: (path.out_offset, path.out_channel)):
        message = _apply(_coupling(cg, y, path), _features(xj, path)) * _weights(w, path)
        total = x.new_zeros(nodes, *message.shape[1:]).index_add(0, centre, message)
        blocks.setdefault(path.out_offset, []).append(total)
    return torch.cat([torch.cat(parts, dim=2).flatten(1) for parts in blocks.values()], dim=1)


def _sum_setup(ctx, inputs, output):
    x, y, w, centre, neighbour, row_ptr, cg, ctx.paths, _ = inputs
    ctx.save_for_backward(x, y, w, centre, neighbour, row_ptr, cg)


def _sum_backward(ctx, g):
    x, y, w, *graph, cg = ctx.saved_tensors
    dx = dy = dw = None
    wanted = needed(ctx)
    if wanted[0]:
        dx = _nodes(y, w, g, *graph, cg, ctx.paths, x.shape[0], x.shape[1])
    if wanted[1] or wanted[2]:
        dy, dw = _edges(x, y, w, g, *graph, cg, ctx.paths)
    return dx, dy, dw, None, None, None, None, None, None


# ---- dF/dx --------------------------------------------------------------------------------------------------------


def _nodes_reference(y, w, g, centre, neighbour, row_ptr, cg, paths, nodes, width):
    gi = g.index_select(0, centre)
    parts: dict[int, Tensor] = {}
    for path in unpack(paths):
        transposed = _coupling(cg, y, path).transpose(1, 2)
        part = _apply(transposed, _messages(gi, path) * _weights(w, path)).flatten(1)
        parts[path.x_offset] = parts[path.x_offset] + part if path.x_offset in parts else part
    return g.new_zeros(nodes, width).index_add(0, neighbour, _rows(parts, width, y))


def _nodes_setup(ctx, inputs, output):
    y, w, g, centre, neighbour, row_ptr, cg, ctx.paths, _, _ = inputs
    ctx.save_for_backward(y, w, g, centre, neighbour, row_ptr, cg)


def _nodes_backward(ctx, v):
    y, w, g, *graph, cg = ctx.saved_tensors
    dy = dw = dg = None
    wanted = needed(ctx)
    if wanted[0] or wanted[1]:
        dy, dw = _edges(v, y, w, g, *graph, cg, ctx.paths)
    if wanted[2]:
        dg = _sum(v, y, w, *graph, cg, ctx.paths, g.shape[1])
    return dy, dw, dg, None, None, None, None, None, None, None


# ---- dF/dy, dF/dw -------------------------------------------------------------------------------------------------


def _harmonics_reference(x, w, g, centre, neighbour, row_ptr, cg, paths, width):
    xj, gi = x.index_select(0, neighbour), g.index_select(0, centre)
    dy: dict[int, Tensor] = {}
    for path in unpack(paths):
        cotangent = (_messages(gi, path) * _weights(w, path)).unsqueeze(1)
        products = (_features(xj, path).unsqueeze(2) * cotangent).sum(dim=-1)
        part = products.flatten(1) @ coefficients(cg, path).transpose(1, 2).flatten(0, 1)
        order = path.l_edge**2
        dy[order] = dy[order] + part if order in dy else part
    return _rows(dy, width, w)


def _weights_reference(x, y, g, centre, neighbour, row_ptr, cg, paths, width):
    xj, gi = x.index_select(0, neighbour), g.index_select(0, centre)
    dw = {
        path.w_offset: (_apply(_coupling(cg, y, path), _features(xj, path)) * _messages(gi, path)).sum(dim=1)
        for path in unpack(paths)
    }
    return _rows(dw, width, y)


def _edges_reference(x, y, w, g, *rest):
    return _harmonics_reference(x, w, g, *rest, y.shape[1]), _weights_reference(x, y, g, *rest, w.shape[1])


def _edges_setup(ctx, inputs, output):
    x, y, w, g, centre, neighbour, row_ptr, cg, ctx.paths = inputs
    ctx.save_for_backward(x, y, w, g, centre, neighbour, row_ptr, cg)


def _edges_backward(ctx, vy, vw):
    """Gradients of F(x, vy, w, g) + F(x, y, vw, g) by all arguments.

    As F is linear in each argument, the gradient by y depends on x, vw and g, that by w on x, vy and g: one call has both.
    """
    x, y, w, g, *graph, cg = ctx.saved_tensors
    rest = (*graph, cg, ctx.paths)
    dx = dy = dw = dg = None
    wanted = needed(ctx)
    if wanted[0]:
        dx = _nodes(vy, w, g, *rest, *x.shape) + _nodes(y, vw, g, *rest, *x.shape)
    if wanted[1] or wanted[2]:
        dy, dw = _edges(x, vy, vw, g, *rest)
    if wanted[3]:
        dg = _sum(x, vy, w, *rest, g.shape[1]) + _sum(x, y, vw, *rest, g.shape[1])
    return dx, dy, dw, dg, None, None, None, None, None


_GRAPH = "Tensor centre, Tensor neighbour, Tensor row_ptr, Tensor cg, int[] paths"
_sum = define(
    f"tensor_product_convolution(Tensor x, Tensor y, Tensor w, {_GRAPH}, SymInt width) -> Tensor",
    _sum_reference,
    backward=_sum_backward,
    setup_context=_sum_setup,
    fake=lambda x, y, w, centre, neighbour, row_ptr, cg, paths, width: x.new_empty((row_ptr.shape[0] - 1, width)),
)
_nodes = define(
    f"tensor_product_convolution_nodes(Tensor y, Tensor w, Tensor g, {_GRAPH}, SymInt nodes, SymInt width) -> Tensor",
    _nodes_reference,
    backward=_nodes_backward,
    setup_context=_nodes_setup,
    fake=lambda y, w, g, centre, neighbour, row_ptr, cg, paths, nodes, width: g.new_empty((nodes, width)),
)
_edges = define(
    f"tensor_product_convolution_edges(Tensor x, Tensor y, Tensor w, Tensor g, {_GRAPH}) -> (Tensor, Tensor)",
    _edges_reference,
    backward=_edges_backward,
    setup_context=_edges_setup,
    fake=lambda x, y, w, g, centre, neighbour, row_ptr, cg, paths: (y.new_empty(y.shape), w.new_empty(w.shape)),
)


# ---- sums of derivatives of one kind in lowered graphs (nequip_md.lowering.convolutions), without derivatives ---------------


def _sum_of(reference: Callable, arguments: str) -> Callable:
    """Sum of the results of a reference that takes one tensor of each list named in ``arguments``."""

    def total(x, y, w, g, terms, *rest):
        lists = {"x": x, "y": y, "w": w, "g": g}
        return sum(
            reference(*(lists[name][k] for name, k in zip(arguments, term, strict=True)), *rest)
            for term in unpack_terms(terms)
        )

    return total


def unpack_terms(terms: Sequence[int]) -> list[tuple[int, ...]]:
    """Terms of a sum, three numbers each."""
    return [tuple(terms[k : k + 3]) for k in range(0, len(terms), 3)]


_LISTS = "Tensor[] x, Tensor[] y, Tensor[] w, Tensor[] g, int[] terms"
_by_x = _sum_of(_nodes_reference, "ywg")
_by_y, _by_w, _by_g = (
    _sum_of(_harmonics_reference, "xwg"),
    _sum_of(_weights_reference, "xyg"),
    _sum_of(_sum_reference, "xyw"),
)

BY = {
    "x": define(
        f"tensor_product_convolution_by_x({_LISTS}, {_GRAPH}, SymInt nodes, SymInt width) -> Tensor",
        _by_x,
        fake=lambda x, y, w, g, terms, centre, neighbour, row_ptr, cg, paths, nodes, width: w[0].new_empty(
            (nodes, width)
        ),
    ),
    **{
        name: define(
            f"tensor_product_convolution_by_{name}({_LISTS}, {_GRAPH}, SymInt width) -> Tensor",
            reference,
            fake=lambda x, y, w, g, terms, centre, neighbour, row_ptr, cg, paths, width: x[0].new_empty(
                (centre.shape[0], width)
            ),
        )
        for name, reference in (("y", _by_y), ("w", _by_w))
    },
    "g": define(
        f"tensor_product_convolution_by_g({_LISTS}, {_GRAPH}, SymInt width) -> Tensor",
        _by_g,
        fake=lambda x, y, w, g, terms, centre, neighbour, row_ptr, cg, paths, width: x[0].new_empty(
            (row_ptr.shape[0] - 1, width)
        ),
    ),
}
"""The sum of the derivatives of F by one argument at several places: for each term (three numbers) the places in the lists of the
other arguments, in the order x, y, w, g. The list of the argument itself is empty."""


def tensor_product_convolution(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    centre: Tensor,
    neighbour: Tensor,
    row_ptr: Tensor,
    cg: Tensor,
    paths: Sequence[int],
    width: int,
) -> Tensor:
    """Sum over each centre's edges of the tensor product of the neighbour's features with the edge's harmonics.

    Args:
        x: features of owned nodes, then ghosts, [N + G, width of x]; blocks [2 l + 1, channels].
        y: harmonics [E, (l_max + 1)^2].
        w: one weight for each path and channel, [E, weights].
        centre: centre of each edge, ascending, int64 [E].
        neighbour: int64 [E].
        row_ptr: offsets of each centre's edges, int64 [N + 1].
        cg: coefficients of all paths, flat, in the dtype of ``x``.
        paths: fields of :class:`ConvolutionPath`, path after path; together they fill the messages.
        width: of the messages.

    Returns:
        Messages [N, width]; blocks [2 l + 1, channels of all the paths that lead to the irrep].
    """
    return _sum(x, y, w, centre, neighbour, row_ptr, cg, paths, width)
