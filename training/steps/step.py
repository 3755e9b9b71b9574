"""One training step's mathematics: the loss of a batch and its gradient by every weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import TENSORS, Sample
from nequip_md.training.divergence import FirstFailure, first_failure
from nequip_md.training.steps.loss import QUANTITIES, Prediction, errors, loss, predict

if TYPE_CHECKING:
    from nequip_md.training.evaluation.metrics import ErrorMetrics


@dataclass(frozen=True)
class StepResult:
    """What a step computes.

    Attributes:
        loss: divided by the counts that the step was given, float64 scalar.
        gradients: of the loss, by each weight of :func:`trained`.
        prediction: of the batch.
        totals: for metrics, of each quantity that is predicted (:meth:`~nequip_md.training.steps.loss.Error.totals`), [2 or 3, 4].
        failed: place of the first frame that is not finite (:func:`~nequip_md.training.divergence.first_failure`).
    """

    loss: Tensor
    gradients: list[Tensor]
    prediction: Prediction
    totals: Tensor
    failed: Tensor


class Tally:
    """What a run remembers of its batches, without waiting for the device.

    Attributes:
        totals: sum of those of all batches (:attr:`StepResult.totals`); None before the first.
        failure: the first frame that was not finite.
    """

    def __init__(self):
        self.totals: Tensor | None = None
        self.failure = FirstFailure()
        self._number: Tensor | None = None

    def begin(self, number: int, device: torch.device) -> None:
        """Called before the ``number``-th batch of an epoch, from 0."""
        if self._number is None:
            self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._number.fill_(number)

    def add(self, result: StepResult, batch: Sample) -> None:
        """Take up a batch, in place once there was one."""
        if self.totals is None:
            self.totals = torch.zeros_like(result.totals)
        self.totals += result.totals
        norm = nn.utils.get_total_norm(result.gradients).to(result.loss)
        number = 0 if self._number is None else self._number
        self.failure.add(result.failed, batch, number, torch.stack([result.loss, norm]))

    def move_totals(self, metrics: ErrorMetrics) -> None:
        """Add the totals to metrics; they begin anew."""
        if self.totals is not None:
            metrics.add(self.totals)
            self.totals.zero_()


class EagerStep:
    """The step as PyTorch's eager mode runs it.

    Args:
        with_stress: predict stresses as well.
    """

    def __init__(self, model: nn.Module, config: LossConfig, *, with_stress: bool):
        self.model, self.config, self.with_stress = model, config, with_stress

    def __call__(self, batch: Sample, counts: Tensor) -> StepResult:
        """Evaluate a batch.

        Args:
            counts: numbers of labels to divide by, see :func:`~nequip_md.training.steps.loss.loss`.
        """
        return loss_and_gradient(self.model, trained(self.model), batch, counts, self.config, self.with_stress)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The weights of a model that ask for a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def loss_and_gradient(
    network: Callable[..., Tensor],
    weights: Sequence[Tensor],
    batch: Sample,
    counts: Tensor,
    config: LossConfig,
    with_stress: bool,
) -> StepResult:
    """The loss of a batch and its gradient by some weights.

    Args:
        network: with the arguments of :meth:`nequip_md.model.potential.Potential.forward`.
        weights: that the network uses; they ask for a gradient.
        counts: numbers of labels to divide by.
    """
    with torch.enable_grad():
        prediction = predict(network, batch, with_stress=with_stress, create_graph=True)
        found = errors(prediction, batch)
        value = loss(found, config, counts)
        gradients = torch.autograd.grad(value, list(weights), materialize_grads=True, allow_unused=True)
        # PyTorch's fused optimizers want the strides of the weights
        gradients = [gradient.contiguous() for gradient in gradients]
    totals = torch.stack([found[name].totals(config) for name in QUANTITIES if name in found])
    prediction = prediction.detach()
    return StepResult(value.detach(), gradients, prediction, totals.detach(), first_failure(prediction, batch))


_READ = tuple(name for name in TENSORS if name != "index")
"""The tensors of a batch that a step reads."""


def tensors_of(batch: Sample) -> dict[str, Tensor]:
    """Everything that a step reads of a batch, by name."""
    return {name: tensor for name, tensor in zip(TENSORS, batch.tensors, strict=True) if name in _READ}


def batch_of(tensors: dict[str, Tensor], index: Tensor | None = None) -> Sample:
    """The reverse of :func:`tensors_of`; without ``index`` the frames have none."""
    named = {**tensors, "index": torch.empty(0, dtype=torch.int64) if index is None else index}
    return Sample.from_tensors([named[name] for name in TENSORS])
