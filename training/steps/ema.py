"""Averages of a model's weights, which are validated and saved in place of the weights themselves."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.optim import Optimizer

from nequip_md.training.config import OptimizerConfig


class _Copy(nn.Module):
    """A copy of a model with other weights.

    Attributes:
        module: the copy; its weights require no gradient.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = deepcopy(model).requires_grad_(False)

    def before_step(self, step: int) -> None:
        """Called before the ``step``-th step, from 1."""

    def follow(self, model: nn.Module) -> None:
        """Called after each step of ``model``."""

    def before_evaluation(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Called before the copy is evaluated."""

    def forward(self, *inputs):
        return self.module(*inputs)


class AveragedModel(_Copy):
    """A copy of a model whose weights are an exponential moving average (EMA) of those of the model.

    After the t-th step (from 1): average <- d average + (1 - d) weights, with d = min(decay, t / (t + 9)), so that
    the first, random weights are forgotten early (the warm-up of TensorFlow's ``ExponentialMovingAverage``).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay
        # on the device, so that a recording of the step reads it
        device = next(model.parameters()).device
        self.register_buffer("weight", torch.ones((), device=device), persistent=False)

    def before_step(self, step: int) -> None:
        """Set the weight 1 - d of the ``step``-th step, from 1."""
        self.weight.fill_(1 - min(self.decay, step / (step + 9)))

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Add the weights of ``model`` after its step to the average."""
        averages = list(self.module.parameters())
        steps = torch._foreach_sub(list(model.parameters()), averages)
        torch._foreach_mul_(steps, self.weight.to(averages[0].dtype))
        torch._foreach_add_(averages, steps)


class ScheduleFreeModel(_Copy):
    """A copy of a model with the weights that a schedule-free optimizer has averaged.

    Such an optimizer keeps the average itself, and the model has other weights, at which it takes gradients.
    """

    @torch.no_grad()
    def before_evaluation(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy the averaged weights; those of ``model`` stay as they are.

        Args:
            optimizer: of ``model``, with the methods ``eval``, which puts the averaged weights into the model, and ``train``.
        """
        weights = list(model.parameters())
        kept = [w.clone() for w in weights]
        optimizer.eval()
        torch._foreach_copy_(list(self.module.parameters()), weights)
        optimizer.train()
        # the way back is exact but for rounding; a run must not depend on how often it was evaluated
        torch._foreach_copy_(weights, kept)


def averaged(model: nn.Module, config: OptimizerConfig) -> AveragedModel | ScheduleFreeModel | None:
    """The average of a model's weights that a training file asks for; None if the weights themselves are evaluated."""
    if config.kind == "schedule_free":
        return ScheduleFreeModel(model)
    return None if config.ema_decay is None else AveragedModel(model, config.ema_decay)
