"""Functions that the passes over a traced graph share: values of nodes, sums of nodes, replacement of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten


def calls(graph: Graph, operator: OpOverload) -> list[Node]:
    """Nodes that call an operator, in the graph's order."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    return sorted(graph.find_nodes(op="call_function", target=operator), key=order.__getitem__)


def is_call(node, operator: OpOverload) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target == operator


def results(node: Node) -> dict[int, Node]:
    """Nodes that read single results of an operator with several, by the result's index; equal nodes are merged."""
    found: dict[int, Node] = {}
    for user in list(node.users):
        if user.target is not getitem:
            continue
        first = found.setdefault(user.args[1], user)
        if first is not user:
            user.replace_all_uses_with(first)
            node.graph.erase_node(user)
    return found


def result(graph: Graph, node: Node, number: int) -> Node:
    """Add a node for one result of an operator with several, at the graph's insertion point."""
    taken = graph.call_function(getitem, (node, number))
    taken.meta["val"] = value(node)[number]
    return taken


def value(node):
    """Value of a node, a fake tensor or symbolic size with its shape and dtype; anything that is not a node is its own value."""
    if isinstance(node, (list, tuple)):
        return [value(n) for n in node]
    return node.meta["val"] if isinstance(node, Node) else node


def fill_values(module: GraphModule) -> None:
    """Give the constants of a graph fake values, which a trace gives to all other nodes."""
    mode = next(
        (n.meta["val"].fake_mode for n in module.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)),
        None,
    ) or FakeTensorMode(allow_non_fake_inputs=True)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(getattr(module, node.target), static_shapes=True)


def new_call(graph: Graph, operator, *arguments) -> Node:
    """Add a call at the graph's insertion point, with its value."""
    node = graph.call_function(operator, arguments)
    node.meta["val"] = operator(*[value(argument) for argument in arguments])
    return node


def replace(old: Node, new: Node) -> None:
    """Let all users of a node read another node."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def hoist(nodes, before: Node) -> bool:
    """Move nodes, and the nodes that they depend on, in front of another node.

    Returns False, and moves nothing, if one of them depends on that node.
    """
    order = {node: place for place, node in enumerate(before.graph.nodes)}
    later: set[Node] = set()

    def collect(node: Node) -> bool:
        if node is before:
            return False
        if order[node] < order[before] or node in later:
            return True
        if not all(collect(n) for n in node.all_input_nodes):
            return False
        later.add(node)
        return True

    if not all(collect(node) for node in nodes):
        return False
    for node in sorted(later, key=order.__getitem__):
        before.prepend(node)
    return True


# ---- sums -----------------------------------------------------------------------------------------------------------


def _is_sum(node) -> bool:
    return (
        is_call(node, aten.add.Tensor)
        and not node.kwargs
        and all(isinstance(n, Node) and isinstance(value(n), Tensor) for n in node.args)
        and value(node.args[0]).shape == value(node.args[1]).shape
        and value(node.args[0]).dtype == value(node.args[1]).dtype
    )


def summands(node: Node) -> list[Node]:
    """Summands of a sum, including those of partial sums without other readers. A node that is no sum is its only summand."""
    if not _is_sum(node):
        return [node]
    parts = []
    for operand in node.args:
        parts += summands(operand) if len(operand.users) == 1 else [operand]
    return parts


def sum_of(node: Node) -> Node:
    """The whole sum that a summand belongs to, or the node itself if it has other readers or nothing is added to it."""
    while len(node.users) == 1 and _is_sum(reader := next(iter(node.users))) and reader.args[0] is not reader.args[1]:
        node = reader
    return node


def add_up(graph: Graph, parts: list[Node]) -> Node:
    """Add the sum of nodes at the graph's insertion point."""
    total, *rest = parts
    for part in rest:
        total = new_call(graph, aten.add.Tensor, total, part)
    return total


def at_most(graph: Graph, parts: list[Node], most: int) -> list[Node]:
    """Add up some of the nodes, so that at most ``most`` summands with the same sum remain."""
    return parts if len(parts) <= most else [*parts[: most - 1], add_up(graph, parts[most - 1 :])]


def chunks(items: list, size: int) -> Iterator[list]:
    return (items[k : k + size] for k in range(0, len(items), size))
