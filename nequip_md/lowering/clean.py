"""Removal of what a trace leaves behind: detached copies, several names of one constant, calls that were made before."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from nequip_md.kernels import Backend
from nequip_md.lowering.rewriting import calls, replace

aten = torch.ops.aten


def remove_aliases(module: GraphModule, backend: Backend) -> None:
    """Replace detached tensors by the tensors themselves, since gradients are part of the graph, and merge nodes of one constant."""
    graph = module.graph
    for node in calls(graph, aten.detach.default):
        replace(node, node.args[0])
    first: dict[int, torch.fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        known = first.setdefault(id(getattr(module, node.target)), node)
        if known is not node:
            replace(node, known)


def merge_equal_calls(module: GraphModule) -> None:
    """Let each call of an operator with the same arguments as an earlier one be that one.

    Gradients compute again what the forward pass has computed, such as the parts of split matrices. A graph with an operator that
    changes its inputs is left as it is.
    """
    operators = [
        n for n in module.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)
    ]
    if any(node.target._schema.is_mutable for node in operators):
        return
    first: dict[object, torch.fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        known = first.setdefault((node.target, _key(node.args), _key(tuple(node.kwargs.items()))), node)
        if known is not node:
            replace(node, known)
    module.recompile()


def _key(argument: object) -> object:
    """Equal for equal arguments alone: 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(_key(item) for item in argument)
    return type(argument), argument
