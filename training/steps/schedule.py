"""Learning rates and time limits, which are updated after each epoch."""

from __future__ import annotations

import time
from math import cos, inf, pi
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nequip_md.training.config import ConstantSchedule, CosineSchedule, PlateauSchedule, StopConfig


class Plateau:
    """See :class:`~nequip_md.training.config.PlateauSchedule`."""

    def __init__(self, config: PlateauSchedule, optimizer: Optimizer):
        self._plateau = ReduceLROnPlateau(
            optimizer, factor=config.factor, patience=config.patience, min_lr=config.min_learning_rate, threshold=0.0
        )

    def after_epoch(self, validation_loss: float, progress: float) -> None:
        self._plateau.step(validation_loss)

    def forget_losses(self) -> None:
        """Called where the weights of the loss change, after which its values cannot be compared with those before."""
        self._plateau.best, self._plateau.num_bad_epochs = inf, 0

    def state_dict(self) -> dict[str, Any]:
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau.load_state_dict(state)


class Constant:
    """See :class:`~nequip_md.training.config.ConstantSchedule`."""

    def after_epoch(self, validation_loss: float, progress: float) -> None:
        pass

    def forget_losses(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Cosine(Constant):
    """Learning rate lr_0 (f + (1 - f) (1 + cos(pi p)) / 2), with p the finished fraction of the training and f ``final_fraction``."""

    def __init__(self, config: CosineSchedule, optimizer: Optimizer):
        self.final = config.final_fraction
        self.optimizer = optimizer
        self.start = [group["lr"] for group in optimizer.param_groups]

    def after_epoch(self, validation_loss: float, progress: float) -> None:
        factor = self.final + (1 - self.final) * (1 + cos(pi * min(progress, 1.0))) / 2
        for group, start in zip(self.optimizer.param_groups, self.start, strict=True):
            group["lr"] = start * factor


def make_schedule(
    config: PlateauSchedule | CosineSchedule | ConstantSchedule, optimizer: Optimizer
) -> Plateau | Constant:
    """The schedule that a training file names."""
    if isinstance(config, ConstantSchedule):
        return Constant()
    return Plateau(config, optimizer) if isinstance(config, PlateauSchedule) else Cosine(config, optimizer)


class Clock:
    """Counts epochs and seconds against the limits of :class:`~nequip_md.training.config.StopConfig`.

    Attributes:
        elapsed: seconds of training up to the last epoch, those before a resume included.
        epoch_seconds: duration of the last epoch.
    """

    def __init__(self, limits: StopConfig):
        self.limits = limits
        self.elapsed = self.epoch_seconds = 0.0
        self._mark = time.monotonic()

    def start(self, elapsed: float = 0.0, in_epoch: float = 0.0) -> None:
        """Called when training begins or continues.

        Args:
            elapsed: seconds of the complete epochs before a resume.
            in_epoch: seconds of the epoch that a resume continues.
        """
        self.elapsed, self._mark = elapsed, time.monotonic() - in_epoch

    @property
    def in_epoch(self) -> float:
        """Seconds since the last complete epoch."""
        return time.monotonic() - self._mark

    def after_epoch(self, epochs: int) -> None:
        """Called with the number of finished epochs."""
        now = time.monotonic()
        self.epoch_seconds = now - self._mark
        self.elapsed += self.epoch_seconds
        self._mark = now
        self.epochs = epochs

    @property
    def progress(self) -> float:
        """Finished fraction of the training, 0 to 1, by epochs or by time, whichever is larger."""
        by_time = 0.0 if self.limits.max_time is None else self.elapsed / self.limits.max_time
        return min(1.0, max(by_time, self.epochs / self.limits.max_epochs))

    @property
    def out_of_time(self) -> bool:
        """Whether one more epoch would probably end after ``max_time``."""
        return self.limits.max_time is not None and self.elapsed + self.epoch_seconds > self.limits.max_time
