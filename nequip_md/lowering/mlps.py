"""Passes that fuse an MLP with its reader: hidden layers with the product that reads them, a readout with its gradient."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import (
    add_up,
    aten,
    calls,
    hoist,
    is_call,
    new_call,
    replace,
    result,
    results,
    summands,
)
from nequip_md.lowering.uniform import uniform_value

OPERATORS = torch.ops.nequip_md


# ---- two layers and the matrix that reads them ----------------------------------------------------------------------


def join_products(module: GraphModule, backend: Backend) -> None:
    """Fuse two hidden layers and the product that reads the second into ``mlp_hidden_dense``, and their gradients likewise."""
    graph = module.graph
    for node in calls(graph, OPERATORS.mlp_hidden.default):
        _join_product(graph, node, backend)
    for node in calls(graph, OPERATORS.mlp_hidden_backward.default):
        _join_gradient(graph, node, backend)


def _join_product(graph: Graph, node: Node, backend: Backend) -> None:
    parts, weights = node.args
    taken = results(node)
    if len(weights) != 2 or 0 not in taken:
        return
    products = [n for n in taken[0].users if is_call(n, OPERATORS.dense.default) and n.args[0] is taken[0]]
    products = [n for n in products if not n.args[2]]
    if not products:
        return
    product, w3 = products[0], products[0].args[1]
    arguments = (parts, *weights, w3)
    if not backend.accepts(OPERATORS.mlp_hidden_dense.default, *arguments) or not hoist([w3], node):
        return
    with graph.inserting_before(node):
        made = new_call(graph, OPERATORS.mlp_hidden_dense.default, *arguments)
        h, y, *derivatives = [result(graph, made, k) for k in range(4)]
    replace(product, y)
    for number, old in taken.items():
        replace(old, [h, *derivatives][number])


def _join_gradient(graph: Graph, node: Node, backend: Backend) -> None:
    g, derivatives, weights, widths = node.args
    if len(weights) != 2 or len(g.users) != 1:
        return
    parts = summands(g)
    products = [n for n in parts if is_call(n, OPERATORS.dense.default) and n.args[2] and len(n.users) == 1]
    if not products or len(parts) < 2:
        return
    dy, w3, _ = products[0].args
    others = [part for part in parts if part is not products[0]]
    with graph.inserting_before(node):
        arguments = (add_up(graph, others), dy, *derivatives, *weights, w3, widths)
        if not backend.accepts(OPERATORS.mlp_hidden_dense_backward.default, *arguments):
            return
        made = new_call(graph, OPERATORS.mlp_hidden_dense_backward.default, *arguments)
    replace(node, made)


# ---- a readout and its gradient -------------------------------------------------------------------------------------


def join_energies(module: GraphModule, backend: Backend) -> None:
    """Fuse a readout and its gradient into one ``mlp_energy``.

    This requires that the readout's cotangent is 1, or the factor by which the result is multiplied, and that only the gradient reads the
    derivatives of silu. In a graph of second derivatives other nodes read them too.
    """
    graph = module.graph
    for node in calls(graph, OPERATORS.mlp_readout_backward.default):
        _join_energy(graph, node, backend)


def _join_energy(graph: Graph, backward: Node, backend: Backend) -> None:
    g, derivatives, weights, v, r, _ = backward.args
    readout = derivatives[0].args[0] if derivatives[0].args else None
    if not is_call(readout, OPERATORS.mlp_readout.default) or readout.args[1:] != (weights, v, r):
        return
    taken = results(readout)
    if any(set(taken[1 + k].users) != {backward} for k in range(len(weights)) if 1 + k in taken) or 0 not in taken:
        return
    energy, factor = taken[0], None
    if uniform_value(g) != 1.0:
        readers = list(energy.users)
        if len(readers) != 1 or not is_call(readers[0], aten.mul.Tensor) or set(readers[0].args) != {energy, g}:
            return
        energy, factor = readers[0], g
    arguments = (readout.args[0], weights, v, r, factor)
    if not backend.accepts(OPERATORS.mlp_energy.default, *arguments) or (
        factor is not None and not hoist([factor], readout)
    ):
        return
    with graph.inserting_before(readout):
        made = new_call(graph, OPERATORS.mlp_energy.default, *arguments)
        scaled = result(graph, made, 0)
        gradients = {number: result(graph, made, 1 + number) for number in results(backward)}
    replace(energy, scaled)
    for number, old in results(backward).items():
        replace(old, gradients[number])
