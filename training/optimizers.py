"""Which weights an optimizer changes, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nequip_md.errors import NequIPMDError
from nequip_md.training.config import OptimizerConfig


def freeze(model: nn.Module, config: OptimizerConfig) -> nn.Module:
    """Let all weights of a model ask for a gradient but those that ``config.freeze`` names; returns the model.

    Raises:
        NequIPMDError: a pattern that no weight has, or no weight that is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for key, patterns in (("freeze", config.freeze), ("rate_factors", config.rate_factors)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise NequIPMDError(
                    f"optimizer.{key}: no weight has a name like {pattern!r}; the names are {', '.join(names)}"
                )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in config.freeze))
    if not any(p.requires_grad for p in model.parameters()):
        raise NequIPMDError("optimizer.freeze names all weights; leave some to train")
    return model


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The weights that are trained in groups of one learning rate each, for an optimizer."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((f for pattern, f in config.rate_factors.items() if fnmatchcase(name, pattern)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "lr": factor * config.learning_rate} for factor, params in groups.items()]


@contextmanager
def warmed_up(optimizer: Optimizer, step: int, steps: int) -> Iterator[None]:
    """Within the block, learning rates are those of the warm-up after ``step`` steps, of which it takes ``steps``."""
    if step >= steps:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * (step + 1) / steps
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
