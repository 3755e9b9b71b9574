"""What follows the gradient of a step: clipping, the optimizer, the average; on a GPU recorded as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nequip_md.training.steps.ema import AveragedModel, ScheduleFreeModel


def on_the_device_of_its_weights(optimizer: torch.optim.Optimizer) -> None:
    """Make AdamW's state and options those of the device of its weights, after a state was loaded."""
    for group in optimizer.param_groups:
        group["fused"] = group["capturable"] = group["params"][0].device.type == "cuda"
    for weight, state in optimizer.state.items():
        state["step"] = state["step"].to(weight.device)


class Update:
    """Clipping of the gradients, a step of the optimizer, and the step of the average.

    Args:
        weights: that the optimizer changes, with their gradients.
        gradient_clip: largest norm of the gradient; None leaves it as it is.
        average: takes a step too, where there is one.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        gradient_clip: float | None,
        average: AveragedModel | ScheduleFreeModel | None,
        model: nn.Module,
    ):
        self.weights, self.optimizer, self.gradient_clip = list(weights), optimizer, gradient_clip
        self.average, self.model = average, model

    def __call__(self, closure: Callable[[], Any] | None = None) -> None:
        """Take the place of the optimizer's own ``step``."""
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.gradient_clip)
        type(self.optimizer).step(self.optimizer, closure)
        if self.average is not None:
            self.average.follow(self.model)


class RecordedUpdate:
    """An update of AdamW as a CUDA graph, for gradients that stay in one place.

    The first update of a run makes the optimizer's state, so it is not recorded. The learning rates of the optimizer's groups
    are copied into tensors that the recording reads.
    """

    def __init__(self, update: Update):
        self.update = update
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates: list[Tensor] = []

    def __call__(self, closure: Callable[[], Any] | None = None) -> None:
        """Take the place of the optimizer's own ``step``; the closure is not called."""
        groups = self.update.optimizer.param_groups
        if self._graph is not None:
            for rate, group in zip(self._rates, groups, strict=True):
                rate.fill_(group["lr"])
            self._graph.replay()
            return
        if len(self.update.optimizer.state) < len(self.update.weights):
            self.update()
            return
        device = self.update.weights[0].device
        numbers = [group["lr"] for group in groups]
        self._rates = [torch.tensor(rate, dtype=torch.float32, device=device) for rate in numbers]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self.update()
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
        self._graph.replay()
