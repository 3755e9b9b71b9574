"""Mean absolute and root mean square errors over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import Sample
from nequip_md.training.evaluation.predictions import PredictionCollector
from nequip_md.training.step_config import QUANTITIES
from nequip_md.training.steps.loss import Error, errors, predict


class ErrorMetric(Metric):
    """Mean absolute and root mean square error of one quantity, in float64, over every label of every rank.

    Args:
        config: of the loss, whose mean without weights is computed too, unless it is that of squares.
    """

    full_state_update = False

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config = config
        self.add_state("totals", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, totals: torch.Tensor) -> None:
        """
        Args:
            totals: of some batches, see :meth:`~nequip_md.training.steps.loss.Error.totals`.
        """
        self.totals += totals

    def compute(self) -> dict[str, torch.Tensor]:
        """``count``, ``mae``, ``rmse`` and, unless the loss is that of squares, ``loss``; NaN without a label."""
        absolute, square, penalty, count = self.totals
        found = {"count": count, "mae": absolute / count, "rmse": (square / count).sqrt()}
        return found if self.config.kind == "mse" else {**found, "loss": penalty / count}


class ForceErrorByType(Metric):
    """Mean absolute and root mean square error of the force components on the atoms of each model type."""

    full_state_update = False

    def __init__(self, type_names: Sequence[str]):
        super().__init__()
        self.type_names = list(type_names)
        for name in ("absolute", "square", "count"):
            self.add_state(name, torch.zeros(len(self.type_names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, error: Error, types: torch.Tensor) -> None:
        """
        Args:
            error: of the forces [N, 3].
            types: model type of each atom, int64 [N].
        """
        values = error.values.detach()
        parts = {"absolute": values.abs(), "square": values.square(), "count": error.known.to(values.dtype)}
        for name, part in parts.items():
            setattr(self, name, getattr(self, name).index_add(0, types, part.sum(1)))

    def compute(self) -> dict[str, dict[str, float]]:
        """``mae_by_type`` and ``rmse_by_type``, eV/angstrom; types without a label are left out."""
        means = {"mae": self.absolute / self.count, "rmse": (self.square / self.count).sqrt()}
        present = (self.count > 0).tolist()
        return {
            f"{key}_by_type": {name: v for name, v, known in zip(self.type_names, values.tolist(), present) if known}
            for key, values in means.items()
        }


class ErrorMetrics(nn.Module):
    """One :class:`ErrorMetric` for each quantity: energy per atom (eV), force (eV/angstrom), stress (eV/angstrom^3)."""

    def __init__(self, config: LossConfig, *, with_stress: bool):
        super().__init__()
        names = QUANTITIES if with_stress else QUANTITIES[:-1]
        self.metrics = nn.ModuleDict({name: ErrorMetric(config) for name in names})

    def update(self, found: dict[str, Error]) -> None:
        for name, metric in self.metrics.items():
            metric.update(found[name].totals(metric.config).detach())

    def add(self, totals: torch.Tensor) -> None:
        """Add the totals of some batches.

        Args:
            totals: of each quantity in the order of :data:`~nequip_md.training.steps.loss.QUANTITIES`, [2 or 3, 4]; those of stresses
                are left out where these metrics do not have them.
        """
        for metric, of_quantity in zip(self.metrics.values(), totals):
            metric.update(of_quantity)

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def sums(self) -> dict[str, dict[str, torch.Tensor]]:
        """The sums of this process so far, by quantity."""
        return {name: {k: v.clone() for k, v in metric.metric_state.items()} for name, metric in self.metrics.items()}

    def continue_from(self, sums: dict[str, dict[str, torch.Tensor]]) -> None:
        """Continue from :meth:`sums` of an earlier run."""
        self.reset()
        for name, values in sums.items():
            metric = self.metrics[name]
            for key, value in values.items():
                setattr(metric, key, value.to(metric.device))

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
    model: nn.Module,
    batches: Iterable[Sample],
    *,
    type_names: Sequence[str],
    with_stress: bool,
    device: torch.device | str,
    collector: PredictionCollector | None = None,
) -> dict[str, Any]:
    """Errors of a model over some batches.

    Args:
        type_names: of the model.
        collector: takes up the predictions as well.

    Returns:
        What :meth:`ErrorMetrics.compute` gives, and, where there are forces, ``force_mae_by_type`` and
        ``force_rmse_by_type``, which map the name of a type to the error (eV/angstrom).
    """
    metrics, by_type = (
        ErrorMetrics(LossConfig(), with_stress=with_stress).to(device),
        ForceErrorByType(type_names).to(device),
    )
    for batch in batches:
        batch = batch.to(device)
        prediction = predict(model, batch, with_stress=with_stress)
        found = errors(prediction, batch)
        metrics.update(found)
        by_type.update(found["force"], batch.graph.node_types)
        if collector is not None:
            collector.add(prediction, batch)
    groups = {f"force_{name}": values for name, values in by_type.compute().items() if values}
    return metrics.compute() | groups
