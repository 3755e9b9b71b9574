"""Passes that sum the gradients of an array with several readers in the kernel that computes the last of them.

Autograd makes one gradient for each reader, and adds them. Each gradient is an array over edges, which would be written and read again.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import (
    add_up,
    at_most,
    aten,
    calls,
    chunks,
    is_call,
    new_call,
    replace,
    result,
    results,
    sum_of,
    summands,
)

OPERATORS = torch.ops.nequip_md
MOST = 4
"""Most summands, or contractions, that one kernel takes."""


# ---- contractions with the same weights and harmonics ---------------------------------------------------------------


def sum_contractions(module: GraphModule, backend: Backend) -> None:
    """Sum the gradients of several contractions by their common w and y in one ``edge_contract_gradient``.

    The other contractions keep their gradient by z, ``edge_contract_moment``.
    """
    graph, groups = module.graph, {}
    for node in calls(graph, OPERATORS.edge_contract_backward.default):
        _, w, y, _, centre, row_ptr = node.args
        taken = results(node)
        if all(k in taken and len(taken[k].users) == 1 for k in (0, 1)):
            sums = sum_of(taken[0]), sum_of(taken[1])
            groups.setdefault((w, y, centre, row_ptr, *sums), []).append(node)
    for group in groups.values():
        # the last contraction of each chunk computes the sums, since the arguments of all others are known by then
        for chunk in chunks(group[::-1], MOST):
            if len(chunk) > 1:
                _sum_contractions(graph, chunk[::-1], backend)


def _sum_contractions(graph: Graph, nodes: list[Node], backend: Backend) -> None:
    taken = [results(node) for node in nodes]
    last = nodes[-1]
    _, w, y, _, centre, row_ptr = last.args
    # the operator that computes the sums also computes the last contraction's gradient by z
    g, z = [[node.args[k] for node in nodes[::-1]] for k in (0, 3)]
    if not backend.accepts(OPERATORS.edge_contract_gradient.default, g, w, y, z, centre, row_ptr):
        return
    with graph.inserting_before(last):
        made = new_call(graph, OPERATORS.edge_contract_gradient.default, g, w, y, z, centre, row_ptr)
        dw, dy, dz = [result(graph, made, k) for k in range(3)]
    for k, total in ((0, dw), (1, dy)):
        root, mine = sum_of(taken[0][k]), {parts[k] for parts in taken}
        with graph.inserting_before(root):
            others = [part for part in summands(root) if part not in mine]
            replace(root, add_up(graph, [total, *others]))
    if 2 in taken[-1]:
        replace(taken[-1][2], dz)
    for node, parts in zip(nodes[:-1], taken):
        if 2 in parts:
            with graph.inserting_before(node):
                moment = new_call(graph, OPERATORS.edge_contract_moment.default, node.args[0], w, y, centre, row_ptr)
            replace(parts[2], moment)


# ---- a spread and other gradients -----------------------------------------------------------------------------------


def sum_into_spreads(module: GraphModule, backend: Backend) -> None:
    """Add the other gradients of a moment's features to its gradient by them, [E, 1, C], in one ``edge_spread_add``."""
    graph = module.graph
    for spread in calls(graph, OPERATORS.edge_spread.default):
        y, z, centre, row_ptr, orders = spread.args
        readers = list(spread.users)
        if orders != 1 or len(readers) != 1:
            continue
        # other operators read the features as [E, C]
        squeezed = is_call(readers[0], aten.squeeze.dim) and readers[0].args[1] in (1, -2)
        summand = readers[0] if squeezed else spread
        if len(summand.users) != 1:
            continue
        root = sum_of(summand)
        starts = [part for part in summands(root) if part is not summand]
        if root is summand or not starts:
            continue
        with graph.inserting_before(root):
            starts = at_most(graph, starts, MOST)
            if squeezed:
                starts = [new_call(graph, aten.unsqueeze.default, start, 1) for start in starts]
            if not backend.accepts(OPERATORS.edge_spread_add.default, y, z, centre, row_ptr, starts):
                continue
            total = new_call(graph, OPERATORS.edge_spread_add.default, y, z, centre, row_ptr, starts)
            if squeezed:
                total = new_call(graph, aten.squeeze.dim, total, 1)
        replace(root, total)


# ---- gradients of the harmonics -------------------------------------------------------------------------------------


def sum_into_embedding(module: GraphModule, backend: Backend) -> None:
    """Pass the gradients of the harmonics to the gradient of the edge embedding one by one, which adds them."""
    graph = module.graph
    for node in calls(graph, OPERATORS.edge_embedding_backward.default):
        dg, harmonics, *rest = node.args
        parts = [part for sum_ in harmonics for part in (summands(sum_) if len(sum_.users) == 1 else [sum_])]
        if len(parts) == len(harmonics) or not backend.accepts(node.target, dg, parts[:MOST], *rest):
            continue
        with graph.inserting_before(node):
            node.args = (dg, at_most(graph, parts, MOST), *rest)
