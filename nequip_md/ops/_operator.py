"""How an operator of this package is defined: one schema, one plain reference, one derivative.

Every operator lives in the ``torch.library`` namespace ``nequip_md``. Its *reference* is plain PyTorch, runs on any device,
and is what faster forms are tested against. Faster forms are in :mod:`nequip_md.kernels`, one folder for each kind of device;
nothing else in the package knows them. An operator without a form for the device of an export runs as its reference there, so
that an artifact needs nothing but PyTorch.
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


def references() -> dict[torch._ops.OpOverload, Callable]:
    """Every operator with its reference."""
    return dict(_references)
