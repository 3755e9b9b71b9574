"""Exchange of the features of ghosts, for which a message-passing model needs its engine.

A rank owns N atoms and has G ghosts, copies of atoms that other ranks own. A layer reads the features of both, but computes
those of owned atoms only. ``ghost_exchange`` appends the ghosts' features, which their owners have computed. Its derivative,
``ghost_reduce``, adds the gradients of ghosts to those of their owners.

The references are for a process without ghosts (G = 0), where both operators are the identity. They fill the features of ghosts
with NaN, so that a wrong use does not go unnoticed. In an artifact, compiled code calls a function of the engine
(:mod:`nequip_md.kernels.exchange.forms`), which communicates the features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.ops._operator import define


def _exchange_reference(owned: Tensor, node_types: Tensor) -> Tensor:
    return pad(owned, (0, 0, 0, node_types.shape[0] - owned.shape[0]), value=float("nan"))


def _exchange_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _exchange_backward(ctx, gradient):
    owned, node_types = ctx.saved_tensors
    return torch.ops.nequip_md.ghost_reduce(gradient, node_types, owned.shape[0]), None


def _reduce_reference(values: Tensor, node_types: Tensor, owned: int) -> Tensor:
    return values.narrow(0, 0, owned).clone()


def _reduce_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _reduce_backward(ctx, gradient):
    (node_types,) = ctx.saved_tensors
    return torch.ops.nequip_md.ghost_exchange(gradient, node_types), None, None


define(
    "ghost_exchange(Tensor owned, Tensor node_types) -> Tensor",
    _exchange_reference,
    backward=_exchange_backward,
    setup_context=_exchange_setup,
    fake=lambda owned, node_types: owned.new_empty((node_types.shape[0], owned.shape[1])),
)
define(
    "ghost_reduce(Tensor values, Tensor node_types, SymInt owned) -> Tensor",
    _reduce_reference,
    backward=_reduce_backward,
    setup_context=_reduce_setup,
    fake=lambda values, node_types, owned: values.new_empty((owned, values.shape[1])),
)


def ghost_exchange(owned: Tensor, node_types: Tensor) -> Tensor:
    """Append the features of ghosts.

    Args:
        owned: features of the owned nodes, [N, C].
        node_types: of the owned nodes, then the ghosts, int64 [N + G]; says how many ghosts there are.

    Returns:
        [N + G, C]
    """
    return torch.ops.nequip_md.ghost_exchange(owned, node_types)
