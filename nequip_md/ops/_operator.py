"""How an operator of this package is defined: one schema, one plain reference, one derivative.

Every operator lives in the ``torch.library`` namespace ``nequip_md``. Its *reference* is plain PyTorch, runs on any
device, and is what faster forms are tested against. A faster form is attached in one of two places, and nothing else
in the package changes:

* CPU, ahead of time: a C++ kernel of the same name in ``ops/csrc`` (see :mod:`nequip_md.ops.cpu`), linked into the
  compiled artifact;
* other devices: ``operator.register_kernel(device)`` or a Triton kernel under the same name.

An operator without a kernel for the device of an export is replaced by its reference there
(:func:`decompositions`), so that an artifact needs nothing but PyTorch to run.

Derivatives are written in terms of operators again, so the family is closed: what is differentiable once is
differentiable to any order.
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


MAX_SUMMANDS = 4
"""Arrays that one kernel adds up."""


def summands(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    """Gradients from the readers of one array, for a kernel that adds them up: those that there are, contiguous, at most four."""
    parts = [gradient.contiguous() for gradient in gradients if gradient is not None]
    if len(parts) > MAX_SUMMANDS:
        parts = [*parts[: MAX_SUMMANDS - 1], sum(parts[MAX_SUMMANDS - 1 :])]
    return parts


def decompositions(keep: frozenset[torch._ops.OpOverload] = frozenset()) -> dict[torch._ops.OpOverload, Callable]:
    """References by operator, for ``ExportedProgram.run_decompositions``; operators in ``keep`` stay as they are."""
    return {overload: reference for overload, reference in _references.items() if overload not in keep}
