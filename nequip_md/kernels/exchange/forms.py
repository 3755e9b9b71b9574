"""Exchange of ghosts' features in an artifact: in place, by a C function that calls the engine.

``ghost_exchange`` becomes a padding of the owned rows, which Inductor fuses with the operation before it, and an operator that
fills the ghosts' rows in place. ``ghost_reduce`` becomes the same operator, which then adds the ghosts' rows to the owned
rows, and a view of the latter. The operator is the C function in ``exchange.cpp``; in one process without ghosts it
returns at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.ops._operator import define


def _reference(features: Tensor, owned: int, reduce: bool) -> None:
    """Fill the ghosts' rows with NaN and add nothing, since outside of an artifact no engine exchanges features."""
    if not reduce:
        features.narrow(0, owned, features.shape[0] - owned).fill_(float("nan"))


EXCHANGE_GHOSTS = define(
    "exchange_ghosts_(Tensor(a!) features, SymInt owned, bool reduce) -> ()",
    _reference,
    fake=lambda features, owned, reduce: None,
)


def exchange(owned: Tensor, node_types: Tensor) -> Tensor:
    """Form of ``ghost_exchange`` in an artifact."""
    ghosts = node_types.shape[0] - owned.shape[0]
    features = pad(owned, (0, 0, 0, ghosts), value=float("nan"))
    EXCHANGE_GHOSTS(features, owned.shape[0], False)
    return features


def reduce(values: Tensor, node_types: Tensor, owned: int) -> Tensor:
    """Form of ``ghost_reduce`` in an artifact."""
    # other operations may read the values too; if none does, Inductor removes this copy
    values = values.clone(memory_format=torch.contiguous_format)
    EXCHANGE_GHOSTS(values, owned, True)
    return values.narrow(0, 0, owned)
