"""Mean absolute and root mean square errors over a data set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torchmetrics import Metric

from nequip_md.training.config import LossConfig
from nequip_md.training.data import Sample
from nequip_md.training.loss import QUANTITIES, Error, errors, predict


class ErrorMetric(Metric):
    """Mean absolute and root mean square error of one quantity, in float64, over every label of every rank.

    Args:
        config: of the loss, whose mean without weights is computed too, unless it is that of squares.
    """

    full_state_update = False

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config = config
        for name in ("absolute", "square", "penalty", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, error: Error) -> None:
        values = error.values.detach()
        self.absolute += values.abs().sum()
        self.square += values.square().sum()
        if self.config.kind != "mse":
            self.penalty += error.total(self.config, weighted=False).detach()
        self.count += error.known.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """``count``, ``mae``, ``rmse`` and, unless the loss is that of squares, ``loss``; NaN without a label."""
        found = {"count": self.count, "mae": self.absolute / self.count, "rmse": (self.square / self.count).sqrt()}
        return found if self.config.kind == "mse" else {**found, "loss": self.penalty / self.count}


class ErrorMetrics(nn.Module):
    """One :class:`ErrorMetric` for each quantity: energy per atom (eV), force (eV/angstrom), stress (eV/angstrom^3)."""

    def __init__(self, config: LossConfig, *, with_stress: bool):
        super().__init__()
        names = QUANTITIES if with_stress else QUANTITIES[:-1]
        self.metrics = nn.ModuleDict({name: ErrorMetric(config) for name in names})

    def update(self, found: dict[str, Error]) -> None:
        for name, metric in self.metrics.items():
            metric.update(found[name])

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def compute(self) -> dict[str, float]:
        """``energy_mae``, ``energy_rmse``, ``force_mae`` ...; quantities without any label are left out."""
        # each process takes part in every sum, whatever labels it has seen
        found = {name: metric.compute() for name, metric in self.metrics.items()}
        return {
            f"{name}_{key}": value.item()
            for name, values in found.items()
            for key, value in values.items()
            if values["count"] > 0 and key != "count"
        }


def weighted_loss(values: dict[str, float], config: LossConfig) -> float:
    """The loss over a whole data set without weights of frames, from its errors."""
    if config.kind == "mse":
        return sum(getattr(config, name) * values.get(f"{name}_rmse", 0.0) ** 2 for name in QUANTITIES)
    return sum(getattr(config, name) * values.get(f"{name}_loss", 0.0) for name in QUANTITIES)


def evaluate(
    model: nn.Module, batches: Iterable[Sample], *, with_stress: bool, device: torch.device | str
) -> dict[str, float]:
    """Errors of a model over some batches, as :meth:`ErrorMetrics.compute` gives them."""
    metrics = ErrorMetrics(LossConfig(), with_stress=with_stress).to(device)
    for batch in batches:
        batch = batch.to(device)
        metrics.update(errors(predict(model, batch, with_stress=with_stress), batch))
    return metrics.compute()
