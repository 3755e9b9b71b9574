"""Removal of what a trace leaves behind: detached copies, several names of one constant, calls that do nothing or were made before."""

from __future__ import annotations

import sys
from operator import getitem

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import calls, fill_values, is_call, replace, value

aten = torch.ops.aten


def remove_aliases(module: GraphModule, backend: Backend) -> None:
    """Replace detached tensors by the tensors themselves, since gradients are part of the graph, and merge nodes of one constant."""
    graph = module.graph
    for operator in (aten.detach.default, aten.detach_.default):
        for node in calls(graph, operator):
            replace(node, node.args[0])
    first: dict[int, torch.fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        known = first.setdefault(id(getattr(module, node.target)), node)
        if known is not node:
            replace(node, known)


def remove_no_ops(module: GraphModule) -> None:
    """Replace tensors that were transposed or reshaped twice, sliced as a whole, joined alone, copied in the same order, or joined and
    split again by the tensors that they equal.

    Linear maps and their derivatives leave many of them, which hide that two calls are equal.

    Args:
        module: from ``make_fx``, with values in ``meta["val"]``.
    """
    fill_values(module)
    changed = _changed_in_place(module.graph)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node not in changed and (same := _equal_input(node)) is not None:
            if same not in changed:
                replace(node, same)
    module.graph.eliminate_dead_code()
    module.recompile()


def _equal_input(node: Node) -> Node | None:
    """The tensor that a node equals, if it is the node's input or the input of that."""
    if node.target is getitem and is_call(split := node.args[0], aten.split_with_sizes.default):
        joined, sizes, dim = (*split.args, 0)[:3]
        begin = sum(sizes[: node.args[1]])
        return _joined_part(joined, dim, begin, begin + sizes[node.args[1]])
    if node.target is aten.slice.Tensor and len(node.args) == 4 and is_call(node.args[0], aten.cat.default):
        return _joined_part(*node.args)
    if (
        node.target is aten.slice.Tensor
        and not node.kwargs
        and node.args[2:] in ((0, sys.maxsize), (0, sys.maxsize, 1))
    ):
        return node.args[0]
    if node.target is aten.cat.default and len(node.args[0]) == 1 and _is_contiguous(node.args[0][0]):
        return node.args[0][0]
    if node.target is aten.clone.default and _is_contiguous(node.args[0]):
        return node.args[0]
    if is_call(node, aten.t.default) and is_call(node.args[0], aten.t.default):
        return node.args[0].args[0]
    if node.target in _VIEWS and node.args[0].target in _VIEWS:
        origin = node.args[0].args[0]
        if _is_contiguous(origin) and _same_shape(value(origin), value(node)):
            return origin
    return None


def _joined_part(joined: Node, dim: int, begin: int, end: int) -> Node | None:
    """The tensor that lies from ``begin`` to ``end`` in joined ones, if it is one of these and is contiguous."""
    if not is_call(joined, aten.cat.default) or (*joined.args[1:], 0)[0] != dim:
        return None
    first = 0
    for part in joined.args[0]:
        width = value(part).shape[dim]
        if not isinstance(width, int):
            return None
        if (first, first + width) == (begin, end):
            return part if _is_contiguous(part) else None
        first += width
    return None


_VIEWS = (aten.view.default, aten._unsafe_view.default)


def _same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two fake tensors have the same shape, whatever the sizes that are symbols."""
    return len(a.shape) == len(b.shape) and all(str(n) == str(m) for n, m in zip(a.shape, b.shape))


def _is_contiguous(node: Node) -> bool:
    return value(node).is_contiguous()


def merge_equal_calls(module: GraphModule) -> None:
    """Let each call of an operator with the same arguments as an earlier one be that one.

    Gradients compute again what the forward pass has computed, such as the parts of split matrices. Calls that read or make a tensor
    that another call changes in place stay.
    """
    changed = _changed_in_place(module.graph)
    first: dict[object, Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        if node in changed or any(read in changed for read in node.all_input_nodes):
            continue
        known = first.setdefault((node.target, _key(node.args), _key(tuple(node.kwargs.items()))), node)
        if known is not node:
            replace(node, known)
    module.recompile()


def _changed_in_place(graph: Graph) -> set[Node]:
    """The tensors that calls change, by any of their names."""
    changed: set[Node] = set()

    def add(node: Node) -> None:
        if node not in changed:
            changed.add(node)
            for _, read in _shared(node):
                add(read)

    for node in graph.nodes:
        if any(argument.alias_info.is_write for argument, _ in _shared(node)):
            add(node)
    return changed


def _shared(node: Node) -> list[tuple[torch.Argument, Node]]:
    """Inputs whose memory a call changes or shares with its result, with the operator's arguments."""
    if not isinstance(node.target, OpOverload):
        return []
    pairs = zip(node.target._schema.arguments, node.args)
    return [(argument, read) for argument, read in pairs if argument.alias_info and isinstance(read, Node)]


def _key(argument: object) -> object:
    """Equal for equal arguments alone: 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(_key(item) for item in argument)
    return type(argument), argument
