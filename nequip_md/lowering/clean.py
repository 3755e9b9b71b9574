"""Removal of detached copies, and of several names of one constant, which a trace leaves behind."""

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
