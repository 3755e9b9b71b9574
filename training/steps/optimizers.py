"""Optimizers: which algorithm changes which weights, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from nequip_md.errors import NequIPMDError, install_command
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


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, which: Callable[[str, nn.Parameter], bool] = lambda *_: True
) -> list[dict[str, Any]]:
    """The weights that are trained in groups of one learning rate each, for an optimizer.

    Args:
        which: takes the name of a weight and the weight; those for which it is false are left out.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and which(name, parameter):
            factor = next((f for pattern, f in config.rate_factors.items() if fnmatchcase(name, pattern)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "lr": factor * config.learning_rate} for factor, params in groups.items()]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer that a training file asks for, of the weights of a model that ask for a gradient.

    Raises:
        NequIPMDError: the package of the optimizer is not installed.
    """
    if config.kind == "schedule_free":
        return _schedule_free(model, config)
    device = next(model.parameters()).device
    adamw = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": device.type == "cuda"}
    if config.kind == "adamw":
        return AdamW(parameter_groups(model, config), capturable=device.type == "cuda", **adamw)
    parts: list[Optimizer] = []
    if matrices := parameter_groups(model, config, is_matrix):
        # with this factor of the rate a step moves a matrix about as far as AdamW's, so that one rate serves for all weights
        options = {"momentum": config.momentum, "weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        parts.append(Muon(matrices, **options))
    if others := parameter_groups(model, config, lambda *weight: not is_matrix(*weight)):
        parts.append(AdamW(others, **adamw))
    return JointOptimizer(parts)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight is a matrix that maps features to features, which Muon is made for.

    Embeddings of types, weights of paths and the last layer, which has one column, are not.
    """
    return ".weights." in f".{name}" and parameter.dim() == 2 and min(parameter.shape) > 1


class JointOptimizer(Optimizer):
    """Several optimizers of different weights as one, with one list of groups and one state.

    Args:
        parts: the optimizers, which must not be used by themselves after that.
    """

    def __init__(self, parts: Iterable[Optimizer]):
        self.parts = list(parts)
        self._counts = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        """Let the parts work on the groups and the state of this optimizer."""
        groups = iter(self.param_groups)
        for part, count in zip(self.parts, self._counts, strict=True):
            part.param_groups = [next(groups) for _ in range(count)]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._join()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def _schedule_free(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    try:
        from schedulefree import AdamWScheduleFree
    except ModuleNotFoundError as error:
        raise NequIPMDError(
            f"optimizer.kind: schedule_free needs the package {error.name}: {install_command('train')}"
        ) from None
    optimizer = AdamWScheduleFree(parameter_groups(model, config), betas=config.betas, weight_decay=config.weight_decay)
    optimizer.train()
    return optimizer


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
