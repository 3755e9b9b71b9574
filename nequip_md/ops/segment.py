"""Sums over the edges of a centre.

Edges are sorted by centre, so the edges of atom i are ``row_ptr[i]`` to ``row_ptr[i + 1] - 1``. Sums over such segments need no
atomics and have a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.ops._operator import define


def _reference(values: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    total = values.new_zeros((row_ptr.shape[0] - 1, values.shape[1]))
    return total.index_add(0, centre, values)


def _setup(ctx, inputs, output):
    _, centre, _ = inputs
    ctx.save_for_backward(centre)


def _backward(ctx, gradient):
    (centre,) = ctx.saved_tensors
    return gradient.index_select(0, centre), None, None


_segment_sum = define(
    "segment_sum(Tensor values, Tensor centre, Tensor row_ptr) -> Tensor",
    _reference,
    backward=_backward,
    setup_context=_setup,
    fake=lambda values, centre, row_ptr: values.new_empty((row_ptr.shape[0] - 1, values.shape[1])),
)


def segment_sum(values: Tensor, centre: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum edge values over each centre.

    Args:
        values: [E, C].
        centre: centre of each edge, ascending, int64 [E].
        row_ptr: offsets of each centre's edges, int64 [N + 1].

    Returns:
        [N, C]; zero for a centre without edges.
    """
    return torch.ops.nequip_md.segment_sum(values.contiguous(), centre, row_ptr)
