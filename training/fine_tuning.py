"""Training that starts from a trained model: its architecture and weights, more elements, energies of another reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
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

OPTIONS = ("checkpoint", "type_names", "energy_shifts", "allow_pickle")
"""Keys that the model section may have beside each other in a training that starts from a trained model."""
MOST_FRAMES = 1000
"""Training frames that shifts are fitted to."""
FREEDOM_OF_NEW_TYPES = 1e4
"""The shift of a new type is taken to be so many times as uncertain as that of a type that the checkpoint has."""
ANOTHER_REFERENCE = 0.1
"""eV/atom; files whose mean errors of the energy differ by more, with shifts fitted to all, get a warning."""


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
    if not isinstance(path := options["checkpoint"], str):
        raise NequIPMDError(f"model.checkpoint is {path!r}; it must be the path of one file")
    if not isinstance(allowed := options.get("allow_pickle", False), bool):
        raise NequIPMDError(f"model.allow_pickle is {allowed!r}; it must be true or false")
    config = checkpoint.read_info(path, allow_pickle=allowed).config
    names = options.get("type_names", config.type_names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NequIPMDError(f"model.type_names is {names!r}; it must be a list of names (in YAML, 'No' needs quotes)")
    old = config.type_names
    if names[: len(old)] != old:
        raise NequIPMDError(
            f"model.type_names is {names}; it must begin with the types of the checkpoint, {old}, and may add others"
        )
    changes: dict[str, Any] = {"type_names": names}
    if names != old:
        if config.pair_potential is not None:
            if other := [name for name in names[len(old) :] if atomic_numbers.get(name, 0) == 0]:
                raise NequIPMDError(
                    f"model.type_names: the checkpoint has a {config.pair_potential.kind} term, so that types that are added must"
                    f" be chemical elements; {other[0]!r} is none"
                )
            species = [*config.pair_potential.chemical_species, *names[len(old) :]]
            changes["pair_potential"] = {**config.pair_potential.model_dump(), "chemical_species": species}
        for key in ("avg_num_neighbors", "energy_scales", "energy_shifts"):
            if isinstance(value := getattr(config, key), dict):
                changes[key] = {name: value.get(name, float(np.mean(list(value.values())))) for name in names}
    if not isinstance(shifts, str):
        changes["energy_shifts"] = shifts
    return type(config).model_validate({**config.model_dump(), **changes})


def new_types(options: dict[str, Any], config: PotentialConfig) -> list[str]:
    """Names of the types in ``config``, which :func:`continued` gave for ``options``, that the trained model does not have."""
    trained = checkpoint.read_info(options["checkpoint"], allow_pickle=options.get("allow_pickle", False)).config
    return config.type_names[len(trained.type_names) :]


def start(options: dict[str, Any], config: PotentialConfig, frozen: Sequence[str] = ()) -> Potential:
    """A model with the weights of the trained one; new types have the mean weights of the others.

    Args:
        options: as for :func:`continued`.
        config: what that gave.
        frozen: patterns of names of weights that will not be trained; a warning says where new types have such weights.
    """
    trained = checkpoint.load(options["checkpoint"], allow_pickle=options.get("allow_pickle", False))
    model = build_model(config)
    given = not isinstance(options.get("energy_shifts", "refit"), str)
    state = trained.state_dict()
    types = len(trained.type_names), len(config.type_names)
    values = {
        name: tensor if given and name.endswith("shifts") else _extended(state[name], tensor.shape, *types)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(values)
    stuck = [
        n for n, p in model.named_parameters() if p.shape != state[n].shape and any(fnmatchcase(n, f) for f in frozen)
    ]
    if stuck:
        log.warning(
            "warning: optimizer.freeze keeps %s, where the types that are added have weights of their own: these stay the mean of"
            " the other types; leave them out of freeze",
            ", ".join(stuck),
        )
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


def refitted_shifts(
    model: Potential, samples: SampleSet, batch_size: int, added: Sequence[str] = ()
) -> dict[str, float]:
    """Shifts with which the model's energies of some frames are, on average over compositions, those of their labels.

    The changes of the shifts are the smallest ones that minimise the sum of squares of E_label - E_model; the shifts of new
    types change first, as nothing is known of them. What remains is logged, with a warning if it differs from file to file.

    Args:
        added: names of types that the trained model did not have.

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
        prediction = predict(model, batch, with_stress=False).detach()
        residuals.append((batch.energy - prediction.energy).cpu().numpy())
        counts.append(_composition(batch, len(model.type_names)))
    residual, count = np.concatenate(residuals), np.concatenate(counts)
    freedom = np.where(np.isin(model.type_names, added), FREEDOM_OF_NEW_TYPES, 1.0)
    change = freedom * np.linalg.lstsq(count * freedom, residual, rcond=None)[0]
    (shifts,) = (tensor for name, tensor in model.state_dict().items() if name.endswith("shifts"))
    found = {name: float(value) for name, value in zip(model.type_names, shifts.cpu().numpy() + change, strict=True)}
    log.info("model.energy_shifts = %s (refitted to %d training frames)", found, len(chosen))
    _report_energies(samples, np.array(chosen), (residual - count @ change) / count.sum(axis=1))
    return found


def _report_energies(samples: SampleSet, chosen: np.ndarray, errors: np.ndarray) -> None:
    """Log the errors of the energy that refitted shifts leave, eV/atom, of the frames ``chosen``."""
    log.info("energies before training: RMSE %.4g eV/atom", np.sqrt(np.mean(errors**2)))
    ends = np.cumsum([len(source) for source in samples.sources])
    source = np.searchsorted(ends, samples.rows[chosen], side="right")
    means = {int(k): errors[source == k].mean() for k in np.unique(source)}
    if max(means.values()) - min(means.values()) > ANOTHER_REFERENCE:
        texts = (f"{mean:+.3g} eV/atom {samples.sources[k].name(0).partition(' of ')[2]}" for k, mean in means.items())
        log.warning(
            "warning: no energy shifts fit all files: the labels are, on average, off by %s. They seem to be of several methods"
            " or zeros of energy, which one model cannot learn; leave the energies of some files out (nequip-md-data convert FILE -o"
            " NEW.extxyz --without energy)",
            ", ".join(texts),
        )


def _composition(batch: Sample, types: int) -> np.ndarray:
    """Atoms of each type in each structure [B, types]."""
    graph = batch.graph
    place = graph.node_graph * types + graph.node_types[: graph.num_nodes]
    return torch.bincount(place, minlength=graph.num_graphs * types).view(-1, types).cpu().numpy().astype(float)
