"""Training that starts from a trained model: its architecture and weights, more elements, energies of another reference."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nequip_md import checkpoint
from nequip_md.errors import NequIPMDError
from nequip_md.model.build import build_model
from nequip_md.model.config import PotentialConfig
from nequip_md.model.potential import Potential
from nequip_md.training.data.sample_set import SampleSet
from nequip_md.training.data.samples import Sample, collate
from nequip_md.training.steps.loss import predict

log = logging.getLogger(__name__)

OPTIONS = ("checkpoint", "type_names", "energy_shifts")
"""Keys that the model section may have beside each other in a training that starts from a trained model."""
MOST_FRAMES = 1000
"""Training frames that shifts are fitted to."""


def continued(options: dict[str, Any]) -> PotentialConfig:
    """The configuration of the trained model, extended by the types that ``options`` adds.

    A quantity by type has its mean for the new types; shifts are refitted later.

    Args:
        options: the model section of a training file, with some of :data:`OPTIONS`.

    Raises:
        NequIPMDError: other options, a file that is no checkpoint, or types that do not begin with those of the trained model.
    """
    if other := sorted(options.keys() - set(OPTIONS)):
        raise NequIPMDError(
            f"model.{other[0]}: with model.checkpoint the model is that of the checkpoint; leave it out (beside checkpoint,"
            f" the section may have {', '.join(OPTIONS[1:])})"
        )
    shifts = options.get("energy_shifts", "refit")
    if isinstance(shifts, str) and shifts not in ("refit", "keep"):
        raise NequIPMDError(
            f"model.energy_shifts is {shifts!r}; with model.checkpoint it must be refit, keep, a number or a number for each type"
        )
    config = checkpoint.read_info(options["checkpoint"]).config
    names = list(options.get("type_names", config.type_names))
    old = config.type_names
    if names[: len(old)] != old:
        raise NequIPMDError(
            f"model.type_names is {names}; it must begin with the types of the checkpoint, {old}, and may add others"
        )
    changes: dict[str, Any] = {"type_names": names}
    if names != old:
        if config.pair_potential is not None:
            raise NequIPMDError(
                "model.type_names: the checkpoint has a pair_potential, whose elements are fixed; types cannot be added"
            )
        for key in ("avg_num_neighbors", "energy_scales", "energy_shifts"):
            if isinstance(value := getattr(config, key), dict):
                changes[key] = {name: value.get(name, float(np.mean(list(value.values())))) for name in names}
    if not isinstance(shifts, str):
        changes["energy_shifts"] = shifts
    return type(config).model_validate({**config.model_dump(), **changes})


def start(options: dict[str, Any], config: PotentialConfig) -> Potential:
    """A model with the weights of the trained one; new types have the mean weights of the others.

    Args:
        options: as for :func:`continued`.
        config: what that gave.
    """
    trained = checkpoint.load(options["checkpoint"])
    model = build_model(config)
    given = not isinstance(options.get("energy_shifts", "refit"), str)
    state = trained.state_dict()
    types = len(trained.type_names), len(config.type_names)
    values = {
        name: tensor if given and name.endswith("shifts") else _extended(state[name], tensor.shape, *types)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(values)
    return model


def _extended(tensor: Tensor, shape: torch.Size, old: int, new: int) -> Tensor:
    """Rows by type, or by pair of types, with mean rows for new types; other tensors as they are."""
    if tensor.shape == shape:
        return tensor
    if shape[0] == new:
        return torch.cat([tensor, tensor.mean(dim=0, keepdim=True).expand(new - old, *tensor.shape[1:])])
    pairs = tensor.unflatten(0, (old, old))
    pairs = torch.cat([pairs, pairs.mean(dim=0, keepdim=True).expand(new - old, *pairs.shape[1:])])
    pairs = torch.cat([pairs, pairs.mean(dim=1, keepdim=True).expand(new, new - old, *pairs.shape[2:])], dim=1)
    return pairs.flatten(0, 1)


def with_shifts(model: Potential, shifts: dict[str, float]) -> Potential:
    """The same model with other energy shifts, eV."""
    config = model.config.model_copy(update={"energy_shifts": shifts})
    changed = build_model(config)
    values = changed.state_dict()
    values |= {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("shifts")}
    changed.load_state_dict(values)
    return changed


def refitted_shifts(model: Potential, samples: SampleSet, batch_size: int) -> dict[str, float]:
    """Shifts with which the model's energies of some frames are, on average over compositions, those of their labels.

    The changes of the shifts are the smallest ones that minimise the sum of squares of E_label - E_model.

    Raises:
        NequIPMDError: no frame has an energy.
    """
    with_energy = np.flatnonzero(samples.table.has_energy)
    if not len(with_energy):
        raise NequIPMDError("model.energy_shifts: no training frame has an energy to refit them to; set keep")
    chosen = [with_energy[k] for k in np.unique(np.linspace(0, len(with_energy) - 1, MOST_FRAMES).round().astype(int))]
    residuals, counts = [], []
    for first in range(0, len(chosen), batch_size):
        batch = collate([samples[k] for k in chosen[first : first + batch_size]])
        residuals.append((batch.energy - predict(model, batch, with_stress=False).energy).detach().cpu().numpy())
        counts.append(_composition(batch, len(model.type_names)))
    change = np.linalg.lstsq(np.concatenate(counts), np.concatenate(residuals), rcond=None)[0]
    (shifts,) = (tensor for name, tensor in model.state_dict().items() if name.endswith("shifts"))
    found = {name: float(value) for name, value in zip(model.type_names, shifts.cpu().numpy() + change, strict=True)}
    log.info("model.energy_shifts = %s (refitted to %d training frames)", found, len(chosen))
    return found


def _composition(batch: Sample, types: int) -> np.ndarray:
    """Atoms of each type in each structure [B, types]."""
    graph = batch.graph
    place = graph.node_graph * types + graph.node_types[: graph.num_nodes]
    return torch.bincount(place, minlength=graph.num_graphs * types).view(-1, types).cpu().numpy().astype(float)
