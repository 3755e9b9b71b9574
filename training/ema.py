"""Exponential moving average (EMA) of a model's weights, which is smoother than the weights and costs little."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class AveragedModel(nn.Module):
    """A copy of a model whose weights follow those of the model.

    After the t-th step (from 1): average <- d average + (1 - d) weights, with d = min(decay, t / (t + 9)), so that
    the first, random weights are forgotten early (the warm-up of TensorFlow's ``ExponentialMovingAverage``).

    Attributes:
        module: the copy; its weights require no gradient.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.module = deepcopy(model).requires_grad_(False)
        # on the device, so that a recording of the step reads it
        self.register_buffer("weight", torch.ones(()), persistent=False)

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

    def forward(self, *inputs):
        return self.module(*inputs)
