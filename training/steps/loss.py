"""Predictions of a batch, their errors, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nequip_md.graph import forces_from_gradient, stress_from_gradient, total_energy
from nequip_md.model.potential import energy_and_gradient
from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import Sample
from nequip_md.training.step_config import QUANTITIES


@dataclass(frozen=True)
class Prediction:
    """Energy (eV, [B]), forces (eV/angstrom, [N, 3]) and perhaps stress (eV/angstrom^3, [B, 3, 3]); float64."""

    energy: Tensor
    forces: Tensor
    stress: Tensor | None

    def detach(self) -> Prediction:
        stress = None if self.stress is None else self.stress.detach()
        return Prediction(self.energy.detach(), self.forces.detach(), stress)


def predict(
    model: Callable[..., Tensor], batch: Sample, *, with_stress: bool, create_graph: bool = False
) -> Prediction:
    """Evaluate a model on a batch.

    Args:
        model: a :class:`~nequip_md.model.potential.Potential` or a function with the arguments of its ``forward``.
        with_stress: compute stresses too (0 for structures without a volume).
        create_graph: keep the graph of the derivative (training).
    """
    node_energy, gradient = energy_and_gradient(model, *batch.graph.tensors, create_graph=create_graph)
    return prediction_from(batch, node_energy, gradient, with_stress=with_stress)


def prediction_from(batch: Sample, node_energy: Tensor, gradient: Tensor, *, with_stress: bool) -> Prediction:
    """The prediction for a batch from what a model or an artifact gives for its graph.

    Args:
        node_energy: eV [N].
        gradient: of the total energy by each edge vector, eV/angstrom [E, 3].
    """
    graph = batch.graph
    return Prediction(
        energy=total_energy(graph, node_energy),
        forces=forces_from_gradient(graph, gradient),
        stress=stress_from_gradient(graph, gradient, batch.volume) if with_stress else None,
    )


STRATA = {100.0: 0.7, 200.0: 0.4, 300.0: 0.1}
"""Factors of ``huber_delta`` for forces whose label is at least so large, eV/angstrom, in ``stratified_huber`` (the conditional
Huber loss of MACE-MP-0, arXiv:2401.00096)."""


@dataclass(frozen=True)
class Error:
    """Prediction minus label of one quantity.

    Attributes:
        values: the differences, 0 where there is no label.
        known: whether there is a label, of the same shape.
        weight: weight of the frame that each row belongs to.
        strata: factor of ``huber_delta`` for each row in ``stratified_huber``.
    """

    values: Tensor
    known: Tensor
    weight: Tensor
    strata: Tensor | None = None

    @classmethod
    def of(cls, prediction: Tensor, label: Tensor, weight: Tensor, strata: Tensor | None = None) -> Error:
        known = ~torch.isnan(label)
        return cls(torch.where(known, prediction - label, 0.0), known, weight, strata)

    def totals(self, config: LossConfig) -> Tensor:
        """Sums over the labels of |x|, x^2 and the penalty without weights, and the number of labels, float64 [4], for
        :class:`~nequip_md.training.evaluation.metrics.ErrorMetric`. The penalty of squares is left at 0."""
        values = self.values.to(torch.float64)
        penalty = values.new_zeros(()) if config.kind == "mse" else self.total(config, weighted=False)
        return torch.stack([values.abs().sum(), values.square().sum(), penalty, self.known.sum().to(values.dtype)])

    def total(self, config: LossConfig, *, weighted: bool = True) -> Tensor:
        """Sum over the labels of the penalty, times the weight of the frame unless ``weighted`` is False; 0 without any label."""
        rows = (-1, *[1] * (self.values.dim() - 1))
        strata = self.strata.reshape(rows) if self.strata is not None and config.kind == "stratified_huber" else None
        values = penalty(self.values, config, strata)
        return (values * self.weight.reshape(rows) if weighted else values).sum()


def penalty(x: Tensor, config: LossConfig, strata: Tensor | None = None) -> Tensor:
    """What the loss averages of an error x: x^2, |x|, or Huber's function, x^2 / 2 up to delta and delta (|x| - delta / 2) beyond.

    Args:
        strata: factors of delta.
    """
    if config.kind == "mse":
        return x.square()
    if config.kind == "mae":
        return x.abs()
    delta = config.huber_delta if strata is None else config.huber_delta * strata
    size = x.abs()
    return torch.where(size <= delta, 0.5 * x.square(), delta * (size - 0.5 * delta))


def errors(prediction: Prediction, batch: Sample) -> dict[str, Error]:
    """Errors of ``energy`` per atom (eV, [B]), ``force`` ([N, 3]) and, if it is predicted, ``stress`` ([B, 3, 3])."""
    atoms = batch.num_atoms.clamp(min=1)
    # phantom atoms, which have no labels, come after the last structure's
    of_atom = torch.cat([batch.weight, batch.weight.new_ones(1)]).index_select(0, batch.graph.node_graph)
    sizes = batch.forces.norm(dim=1)
    strata = torch.ones_like(sizes)
    for least, factor in STRATA.items():
        strata = torch.where(sizes >= least, factor, strata)
    found = {
        "energy": Error.of(prediction.energy / atoms, batch.energy / atoms, batch.weight),
        "force": Error.of(prediction.forces, batch.forces, of_atom, strata),
    }
    if prediction.stress is not None:
        found["stress"] = Error.of(prediction.stress, batch.stress, batch.weight)
    return found


def label_counts(batch: Sample) -> Tensor:
    """Numbers of the labels of a batch: of energies, force components and stress components, float64 [3]."""
    labels = (batch.energy, batch.forces, batch.stress)
    return torch.stack([(~torch.isnan(label)).sum() for label in labels]).to(torch.float64)


def loss(found: dict[str, Error], config: LossConfig, counts: Tensor) -> Tensor:
    """w_E <w p(dE / N)> + w_F <w p(dF)> + w_S <w p(dS)>, with w the weight of the frame and p the :func:`penalty`.

    Means are over structures, and over components of forces and stresses; a weight does not count in their number.

    Args:
        counts: numbers to divide by, where they are not 0, from :func:`label_counts`, summed over processes, and perhaps from
            :func:`divisors`; in the order of :data:`~nequip_md.training.step_config.QUANTITIES`.
    """
    counts = torch.where(counts > 0, counts, 1.0)
    parts = [
        getattr(config, name) * found[name].total(config) / counts[k]
        for k, name in enumerate(QUANTITIES)
        if name in found
    ]
    return torch.stack(parts).sum()


def divisors(counts: Tensor, weights: Tensor) -> Tensor:
    """Numbers to divide by in a :func:`loss` whose weights are 1, so that its weights are others.

    Args:
        counts: from :func:`label_counts`, summed over processes.
        weights: of energy, forces and stress, float64 [3]; a quantity with weight 0 is divided by infinity.
    """
    return counts.clamp(min=1) / weights
