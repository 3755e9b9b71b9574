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

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights of ``model`` after its ``step``-th step to the average."""
        weight = 1 - min(self.decay, step / (step + 9))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)

    def forward(self, *inputs):
        return self.module(*inputs)
