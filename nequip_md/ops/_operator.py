"""Definition of an operator of this package: one schema, one plain reference, one derivative.

Every operator is in the ``torch.library`` namespace ``nequip_md``. Its *reference* is plain PyTorch, runs on any device, and
serves to test faster forms. These are in :mod:`nequip_md.kernels`, one folder for each kind of device; nothing else in the
package depends on them. If there is no form for the device of an export, the artifact runs the reference, so that it needs
nothing but PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_library = torch.library.Library("nequip_md", "DEF")
_references: dict[torch._ops.OpOverload, Callable] = {}


def define(
    schema: str,
    reference: Callable,
    *,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    fake: Callable | None = None,
) -> torch._ops.OpOverload:
    """Register an operator.

    Args:
        schema: ``name(arguments) -> results`` as in ``native_functions.yaml``, without the namespace.
        reference: plain PyTorch implementation; returns fresh tensors, never a view of an input.
        backward: ``backward(ctx, *cotangents)``, one gradient (or None) for each argument.
        setup_context: saves what ``backward`` needs.
        fake: shapes and dtypes of the results; by default the reference is traced.

    Returns:
        The operator, callable.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nequip_md::{name}", fake or reference, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"nequip_md::{name}", backward, setup_context=setup_context, lib=_library)
    overload = getattr(torch.ops.nequip_md, name).default
    _references[overload] = reference
    return overload


def needed(ctx) -> list[bool]:
    """Which gradients the running backward pass uses: one entry for each tensor among the operator's arguments, lists flattened.

    A leaf of the graph counts as used. ``ctx.needs_input_grad`` is less specific: in the pass that computes forces, weights require
    a gradient, but nothing uses it.
    """
    return [node is not None and _is_executed(node) for node, _ in ctx.next_functions]


def _is_executed(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # autograd does not answer this for leaves
        return True


def vector_jacobian_products(
    function: Callable[..., Tensor | Iterable[Tensor]],
    tensors: list[Tensor],
    wanted: list[bool],
    cotangents: Iterable[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a function by its arguments, for derivatives without a formula of their own.

    Args:
        function: differentiable function of ``tensors`` that returns a tensor or several.
        wanted: for each argument, whether its gradient is needed.
        cotangents: one for each result; None is zero.

    Returns:
        A gradient for each wanted argument and None for the others, differentiable if the backward pass keeps its graph.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases, so that arguments are independent of each other even if one was computed from another
        aliases = [t.view_as(t) if again and t.requires_grad else t.detach() for t in tensors]
        for alias, want in zip(aliases, wanted):
            if want and not alias.requires_grad:
                alias.requires_grad_()
        results = function(*aliases)
    results = [results] if isinstance(results, Tensor) else results
    pairs = [(result, g) for result, g in zip(results, cotangents) if g is not None and result.requires_grad]
    arguments = [alias for alias, want in zip(aliases, wanted) if want]
    if not pairs or not arguments:
        return [None] * len(tensors)
    outputs, grads = zip(*pairs)
    gradients = iter(torch.autograd.grad(outputs, arguments, grads, create_graph=again, allow_unused=True))
    return [next(gradients) if want else None for want in wanted]


def references() -> dict[torch._ops.OpOverload, Callable]:
    """The reference of every operator."""
    return dict(_references)
