"""How an artifact exchanges ghosts' features: in place, by a C function that calls the engine.

``ghost_exchange`` becomes a padding of the owned rows, which Inductor fuses with what comes before it, and an operator that
fills the ghosts' rows where they lie. ``ghost_reduce`` becomes the same operator, which adds the ghosts' rows to the owned
rows, and a view of the latter. The operator is the C function in ``exchange.cpp``; in one process without ghosts it
returns at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.ops._operator import define


def _reference(features: Tensor, owned: int, reduce: bool) -> None:
    """Outside of an artifact no engine answers: what a ghost's row would hold is not known, and nothing is added."""
    if not reduce:
        features.narrow(0, owned, features.shape[0] - owned).fill_(float("nan"))


EXCHANGE_GHOSTS = define(
    "exchange_ghosts_(Tensor(a!) features, SymInt owned, bool reduce) -> ()",
    _reference,
    fake=lambda features, owned, reduce: None,
)


def exchange(owned: Tensor, node_types: Tensor) -> Tensor:
    """``ghost_exchange`` in an artifact."""
    ghosts = node_types.shape[0] - owned.shape[0]
    features = pad(owned, (0, 0, 0, ghosts), value=float("nan"))
    EXCHANGE_GHOSTS(features, owned.shape[0], False)
    return features


def reduce(values: Tensor, node_types: Tensor, owned: int) -> Tensor:
    """``ghost_reduce`` in an artifact."""
    # autograd may have given the values to another reader; where it has not, Inductor leaves this copy out
    values = values.clone(memory_format=torch.contiguous_format)
    EXCHANGE_GHOSTS(values, owned, True)
    return values.narrow(0, 0, owned)
