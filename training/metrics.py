"""Mean absolute and root mean square errors over a data set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torchmetrics import Metric

from nequip_md.training.config import LossConfig
from nequip_md.training.loss import Error, errors, predict
from nequip_md.training.samples import Sample


class ErrorMetric(Metric):
    """Mean absolute and root mean square error of one quantity, in float64, over every label of every rank."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        for name in ("absolute", "square", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, error: Error) -> None:
        values = error.values.detach()
        self.absolute += values.abs().sum()
        self.square += values.square().sum()
        self.count += error.known.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """``mae`` and ``rmse``; NaN without a label."""
        return {"mae": self.absolute / self.count, "rmse": (self.square / self.count).sqrt()}


class ErrorMetrics(nn.Module):
    """One :class:`ErrorMetric` for each quantity: energy per atom (eV), force (eV/angstrom), stress (eV/angstrom^3)."""

    def __init__(self, with_stress: bool):
        super().__init__()
        self.metrics = nn.ModuleDict({name: ErrorMetric() for name in ("energy", "force", *["stress"] * with_stress)})

    def update(self, found: dict[str, Error]) -> None:
        for name, metric in self.metrics.items():
            metric.update(found[name])

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def compute(self) -> dict[str, float]:
        """``energy_mae``, ``energy_rmse``, ``force_mae`` ...; quantities without any label are left out."""
        found = {name: metric.compute() for name, metric in self.metrics.items() if metric.count > 0}
        return {f"{name}_{key}": value.item() for name, values in found.items() for key, value in values.items()}


def weighted_loss(values: dict[str, float], weights: LossConfig) -> float:
    """The loss over a whole data set, from its root mean square errors."""
    return sum(getattr(weights, name) * values.get(f"{name}_rmse", 0.0) ** 2 for name in LossConfig.model_fields)


def evaluate(
    model: nn.Module, batches: Iterable[Sample], *, with_stress: bool, device: torch.device | str
) -> dict[str, float]:
    """Errors of a model over some batches, as :meth:`ErrorMetrics.compute` gives them."""
    metrics = ErrorMetrics(with_stress).to(device)
    for batch in batches:
        batch = batch.to(device)
        metrics.update(errors(predict(model, batch, with_stress=with_stress), batch))
    return metrics.compute()
