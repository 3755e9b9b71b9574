"""Preparation of a run from its training file: data, statistics and the model's options."""

from __future__ import annotations

import logging

from ase.data import atomic_numbers, covalent_radii

from nequip_md.model.build import build_model
from nequip_md.model.config import PotentialConfig
from nequip_md.training.config import AUTO_VALUES, TrainingConfig
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.statistics import Statistics, automatic_value, compute_statistics, isolated_atom_energies
from nequip_md.training.steps.optimizers import freeze

log = logging.getLogger(__name__)

CLOSE_CONTACT = 0.7
"""A pair of types has close contacts in the data if a distance is shorter than this fraction of the sum of covalent radii."""


def prepare(config: TrainingConfig) -> tuple[AtomsData, Statistics]:
    """Read the data of a training file, log what is in it, and compute the statistics of its training frames.

    Raises:
        NequIPMDError: a file, frame or label cannot be used, or the loss has a quantity for which no frame has a label.
    """
    potential = config.potential()
    data = AtomsData(config.data, potential, config.seed)
    for label, name in (("energy", "energy"), ("forces", "force"), ("stress", "stress")):
        data.require(label, config.loss.largest_weight(name))
    statistics = compute_statistics(data.train, potential.type_names)
    suggest_repulsion(statistics, potential)
    return data, statistics


def resolved(config: TrainingConfig, data: AtomsData, statistics: Statistics) -> PotentialConfig:
    """The model's configuration with its automatic values, which are logged.

    Raises:
        NequIPMDError: the data does not determine a value.
    """
    if "checkpoint" in config.model:
        return config.potential()
    types = config.model["type_names"]
    shifts = config.model.get("energy_shifts", "auto")
    isolated = None
    if data.isolated_atoms and shifts in ("auto", "isolated_atoms"):
        isolated = isolated_atom_energies(data.isolated_atoms, types, Labels())
    potential = config.potential(lambda key, word: automatic_value(key, word, statistics, isolated, types))
    for key in AUTO_VALUES:
        log.info(
            "model.%s = %s%s",
            key,
            getattr(potential, key),
            " (from the data)" if isinstance(config.model.get(key, ""), str) else "",
        )
    fitted = isinstance(shifts, str) and isolated is None
    if fitted and statistics.composition_rank < len(types):
        log.warning(
            "the training frames have %d independent compositions for %d types: only sums of the shifts mean something,"
            " energies of isolated atoms do not",
            statistics.composition_rank,
            len(types),
        )
    return potential


def check(config: TrainingConfig) -> None:
    """Do all that a run does before it trains: read the data, compute its statistics, build the model.

    Raises:
        NequIPMDError: see :func:`prepare`, :func:`resolved` and :func:`~nequip_md.training.steps.optimizers.freeze`.
    """
    potential = resolved(config, *prepare(config))
    model = freeze(build_model(potential), config.optimizer)
    weights = list(model.parameters())
    log.info("%s model with %d weights", potential.kind, sum(p.numel() for p in weights))
    if config.optimizer.freeze:
        log.info("%d of them are frozen", sum(p.numel() for p in weights if not p.requires_grad))


def suggest_repulsion(statistics: Statistics, potential: PotentialConfig) -> None:
    """Log the pairs of types without close contacts in the data, unless the model has a repulsive term."""
    types = potential.type_names
    if potential.pair_potential is not None or any(t not in atomic_numbers for t in types):
        return
    lacking = []
    for k, a in enumerate(types):
        for b in types[k:]:
            closest = statistics.closest_distances.get(a, {}).get(b)
            radii = covalent_radii[atomic_numbers[a]] + covalent_radii[atomic_numbers[b]]
            if closest is None:
                lacking.append(f"{a}-{b} never within the cutoff")
            elif closest > CLOSE_CONTACT * radii:
                lacking.append(f"{a}-{b} {closest:.2f} Å")
    if lacking:
        log.info(
            "closest contacts in the training data: %s. At shorter distances the model extrapolates, and atoms can fall"
            " onto each other in hot or long runs; model.pair_potential: {kind: zbl, chemical_species: [%s]} adds a"
            " repulsion that takes over there",
            ", ".join(lacking[:6]) + (f" and {len(lacking) - 6} pairs more" if len(lacking) > 6 else ""),
            ", ".join(types),
        )
