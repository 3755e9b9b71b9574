"""Predictions of a batch, their errors, and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nequip_md.graph import forces_from_gradient, stress_from_gradient, total_energy
from nequip_md.model.potential import energy_and_gradient
from nequip_md.training.config import LossConfig
from nequip_md.training.data import Sample


@dataclass(frozen=True)
class Prediction:
    """Energy (eV, [B]), forces (eV/angstrom, [N, 3]) and perhaps stress (eV/angstrom^3, [B, 3, 3]); float64."""

    energy: Tensor
    forces: Tensor
    stress: Tensor | None


def predict(model: nn.Module, batch: Sample, *, with_stress: bool, create_graph: bool = False) -> Prediction:
    """Evaluate a model on a batch.

    Args:
        with_stress: compute stresses too (0 for structures without a volume).
        create_graph: keep the graph of the derivative (training).
    """
    graph = batch.graph
    node_energy, gradient = energy_and_gradient(model, *graph.tensors, create_graph=create_graph)
    return Prediction(
        energy=total_energy(graph, node_energy),
        forces=forces_from_gradient(graph, gradient),
        stress=stress_from_gradient(graph, gradient, batch.volume) if with_stress else None,
    )


@dataclass(frozen=True)
class Error:
    """Prediction minus label of one quantity.

    Attributes:
        values: the differences, 0 where there is no label.
        known: whether there is a label, of the same shape.
        weight: weight of the frame that each row belongs to.
    """

    values: Tensor
    known: Tensor
    weight: Tensor

    @classmethod
    def of(cls, prediction: Tensor, label: Tensor, weight: Tensor) -> Error:
        known = ~torch.isnan(label)
        return cls(torch.where(known, prediction - label, 0.0), known, weight)

    def mean_square(self) -> Tensor:
        """Mean of weight times square over the labels; 0 if there are none."""
        weight = self.weight.reshape(-1, *[1] * (self.values.dim() - 1))
        return (weight * self.values.square()).sum() / self.known.sum().clamp(min=1)


def errors(prediction: Prediction, batch: Sample) -> dict[str, Error]:
    """Errors of ``energy`` per atom (eV, [B]), ``force`` ([N, 3]) and, if it is predicted, ``stress`` ([B, 3, 3])."""
    atoms = batch.num_atoms
    of_atom = batch.weight.repeat_interleave(atoms, output_size=batch.forces.shape[0])
    found = {
        "energy": Error.of(prediction.energy / atoms, batch.energy / atoms, batch.weight),
        "force": Error.of(prediction.forces, batch.forces, of_atom),
    }
    if prediction.stress is not None:
        found["stress"] = Error.of(prediction.stress, batch.stress, batch.weight)
    return found


def loss(found: dict[str, Error], weights: LossConfig) -> Tensor:
    """The loss w_E <w (dE / N)^2> + w_F <w dF^2> + w_S <w dS^2>, with w the weight of the frame.

    Means are over structures, and over components of forces and stresses; they are not divided by the sum of the weights.
    """
    return sum(getattr(weights, name) * error.mean_square() for name, error in found.items())
