"""Pass that sums derivatives of NequIP's convolution of one kind in one kernel.

In a graph with second derivatives a layer's convolution is differentiated at several places: at the features, and at the direction in which a
derivative of the features is taken, for example. Autograd adds the results, each an array over edges or atoms, and each made from arrays
that the others read as well.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import add_up, calls, chunks, new_call, replace, results, sum_of, summands, value
from nequip_md.ops.tensor_product_convolution import BY, unpack, unpack_terms

OPERATORS = torch.ops.nequip_md
MOST = 3
"""Most terms that one kernel takes; what autograd adds up for a layer."""


def sum_convolutions(module: GraphModule, backend: Backend) -> None:
    """Replace derivatives of convolutions by sums of derivatives by one argument, each with as many terms as are added up."""
    graph = module.graph
    made = [node for name in BY for node in _single(graph, name, backend)]
    for node in made:
        if node.users:  # others are in a sum already
            _join(graph, sum_of(node), backend)


def _single(graph: Graph, name: str, backend: Backend) -> list[Node]:
    """Replace derivatives by the argument ``name`` by sums of one term; returns these."""
    made = []
    if name == "g":
        for node in calls(graph, OPERATORS.tensor_product_convolution.default):
            x, y, w, *rest = node.args
            made += _replaced(graph, node, node, backend, name, [x], [y], [w], [], *rest)
    elif name == "x":
        for node in calls(graph, OPERATORS.tensor_product_convolution_nodes.default):
            y, w, g, *rest = node.args
            made += _replaced(graph, node, node, backend, name, [], [y], [w], [g], *rest)
    else:
        for node in calls(graph, OPERATORS.tensor_product_convolution_edges.default):
            x, y, w, g, *rest = node.args
            taken = results(node)
            if name == "y" and 0 in taken and isinstance(width := value(y).shape[1], int):
                made += _replaced(graph, taken[0], node, backend, name, [x], [], [w], [g], *rest, width)
            if name == "w" and 1 in taken:
                width = sum(path.mul for path in unpack(node.args[-1]))
                made += _replaced(graph, taken[1], node, backend, name, [x], [y], [], [g], *rest, width)
    return made


def _replaced(graph: Graph, old: Node, before: Node, backend: Backend, name: str, x, y, w, g, *rest) -> list[Node]:
    arguments = (x, y, w, g, [0, 0, 0], *rest)
    if not backend.accepts(BY[name], *arguments):
        return []
    with graph.inserting_before(before):
        new = new_call(graph, BY[name], *arguments)
    replace(old, new)
    return [new]


def _join(graph: Graph, root: Node, backend: Backend) -> None:
    """Join the terms of a sum that are derivatives of the same layer by the same argument."""
    groups: dict[tuple, list[Node]] = {}
    parts = summands(root)
    for part in parts:
        if part.target in BY.values() and len(part.users) == 1:
            key = (part.target, *(tuple(a) if isinstance(a, list) else a for a in part.args[5:]))
            groups.setdefault(key, []).append(part)
    joined: dict[Node, Node | None] = {}
    for group in groups.values():
        for chunk in chunks(group, MOST):
            if len(chunk) > 1:
                with graph.inserting_before(root):
                    joined |= {chunk[0]: _joined(graph, chunk), **dict.fromkeys(chunk[1:])}
    if joined:
        with graph.inserting_before(root):
            replace(root, add_up(graph, [new for part in parts if (new := joined.get(part, part)) is not None]))
        graph.eliminate_dead_code()


def _joined(graph: Graph, nodes: list[Node]) -> Node:
    lists: list[list[Node]] = [[], [], [], []]
    terms: list[int] = []
    for node in nodes:
        given = [k for k in range(4) if node.args[k]]
        for term in unpack_terms(node.args[4]):
            for k, place in zip(given, term, strict=True):
                tensor = node.args[k][place]
                if tensor not in lists[k]:
                    lists[k].append(tensor)
                terms.append(lists[k].index(tensor))
    return new_call(graph, nodes[0].target, *lists, terms, *nodes[0].args[5:])
