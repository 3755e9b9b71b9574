"""Constant folding: nodes that depend on weights alone are evaluated once, when a model is lowered."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_constants(module: torch.fx.GraphModule) -> None:
    """Evaluate all nodes that depend on weights and constants alone, and make their values constants.

    Otherwise products of weight matrices, and the splitting of matrices, would be a few dozen small operations in every step.
    """
    known: dict[torch.fx.Node, object] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes):
            operator = isinstance(node.target, torch._ops.OpOverload)
            if operator and (node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags):
                continue
            if not node.all_input_nodes and not operator:
                continue
            arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*arguments, **options)
    for number, (node, value) in enumerate(known.items()):
        outside = [user for user in node.users if user not in known]
        if node.op == "get_attr" or not outside or not isinstance(value, Tensor):
            continue
        name = f"_folded_{number}"
        module.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta = node.meta
        for user in outside:
            user.replace_input_with(node, constant)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
