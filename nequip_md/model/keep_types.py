"""A model with some of its types alone: the same energies for structures of these types, with smaller tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nequip_md.errors import NequIPMDError
from nequip_md.model.build import build_model
from nequip_md.model.config import PotentialConfig
from nequip_md.model.potential import Potential

_OPTIONS_BY_TYPE = ("avg_num_neighbors", "energy_scales", "energy_shifts")
_ROWS_BY_TYPE = ("type_embedding", "embedding.centre", "embedding.neighbour")
_ROWS_BY_PAIR = ("embedding.weight",)
_ROWS_BY_OPTION = {"scale_shift.scales": "energy_scales", "scale_shift.shifts": "energy_shifts"}


def keep_types(model: Potential, names: Sequence[str]) -> Potential:
    """The potential for structures of some types, which has no weights of the others.

    Energies and gradients of such structures are those of the whole model to round-off: atoms see the types of their neighbours
    only, and every number that belongs to a type is kept as it is, averages over all types included.

    Args:
        model: with T types.
        names: some of ``model.type_names``, in any order.

    Returns:
        A model on the CPU whose types are in the order of ``model``'s; ``model`` itself if all of its types are kept.

    Raises:
        NequIPMDError: no name, a name that is no type of the model, or one that is given twice.
    """
    config = model.config
    kept = _indices(config.type_names, names)
    if len(kept) == len(config.type_names):
        return model
    smaller = build_model(_kept_config(config, [config.type_names[k] for k in kept]))
    smaller.load_state_dict(
        {name: _kept_rows(name, tensor, config, kept) for name, tensor in model.state_dict().items()}
    )
    return smaller.train(model.training)


def _indices(types: list[str], names: Sequence[str]) -> list[int]:
    there = f"the model has the types {' '.join(types)}"
    if not names:
        raise NequIPMDError(f"no type is kept; name one at least: {there}")
    for name in names:
        if name not in types:
            raise NequIPMDError(f"{name!r} is no type of the model; take it out of the types to keep: {there}")
        if list(names).count(name) > 1:
            raise NequIPMDError(f"{name!r} is given twice in the types to keep; give it once: {there}")
    return [k for k, name in enumerate(types) if name in names]


def _kept_config(config: PotentialConfig, names: list[str]) -> PotentialConfig:
    changes: dict[str, Any] = {"type_names": names}
    for key in _OPTIONS_BY_TYPE:
        if isinstance(value := getattr(config, key), dict):
            changes[key] = {name: value[name] for name in names}
    if config.pair_cutoffs is not None:
        rows = {centre: row for centre, row in config.pair_cutoffs.items() if centre in names}
        changes["pair_cutoffs"] = {
            centre: {name: row[name] for name in names if name in row} if isinstance(row, dict) else row
            for centre, row in rows.items()
        }
    if config.pair_potential is not None:
        element = dict(zip(config.type_names, config.pair_potential.chemical_species, strict=True))
        changes["pair_potential"] = {
            **config.pair_potential.model_dump(),
            "chemical_species": [element[name] for name in names],
        }
    return type(config).model_validate({**config.model_dump(), **changes})


def _kept_rows(name: str, tensor: Tensor, config: PotentialConfig, kept: list[int]) -> Tensor:
    index, types = torch.tensor(kept, device=tensor.device), len(config.type_names)
    if name in _ROWS_BY_PAIR:
        return tensor.unflatten(0, (types, types))[index[:, None], index].flatten(0, 1)
    option = _ROWS_BY_OPTION.get(name)
    # a scale or shift for all types is one number
    if name in _ROWS_BY_TYPE or (option and isinstance(getattr(config, option), dict)):
        return tensor.index_select(0, index)
    return tensor
