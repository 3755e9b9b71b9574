"""Removal of products with arrays of ones.

The gradient of the total energy starts from a cotangent of one. Expanded to atoms and edges it stays an array of ones until it is scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import calls, replace, value

aten = torch.ops.aten
_SHAPES_ONLY = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.expand.default,
        aten.index_select.default,
        aten.permute.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.view.default,
        aten._to_copy.default,
    }
)
"""Operators whose result consists of elements of their first argument."""


def uniform_value(node) -> float | None:
    """The number that every entry of a node has, or None."""
    while isinstance(node, Node) and node.target in _SHAPES_ONLY:
        node = node.args[0]
    if isinstance(node, (int, float)):
        return float(node)
    if not isinstance(node, Node):
        return None
    if node.target in (aten.ones_like.default, aten.ones.default):
        return 1.0
    if node.target in (aten.full.default, aten.full_like.default) and isinstance(node.args[1], (int, float)):
        return float(node.args[1])
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        factors = [uniform_value(n) for n in node.args]
        return None if None in factors else factors[0] * factors[1]
    return None


def remove_ones(module: GraphModule, backend: Backend) -> None:
    """Replace products with an array of ones by their other factor."""
    for node in calls(module.graph, aten.mul.Tensor):
        for ones, other in (node.args, node.args[::-1]):
            same = isinstance(other, Node) and isinstance(value(other), Tensor)
            same = same and value(other).shape == value(node).shape and value(other).dtype == value(node).dtype
            if same and uniform_value(ones) == 1.0:
                replace(node, other)
                break
