"""The progress bar of a training in a terminal: atoms per second, and the time that is left of the whole training."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

from nequip_md.training.data.samples import Sample
from nequip_md.training.steps.schedule import Clock


def seconds_left(clock: Clock, epochs: int, fraction: float, epoch_elapsed: float) -> float:
    """Seconds until the last epoch or ``max_time``, whichever comes first; a run that stops improving may end earlier.

    Args:
        epochs: epochs that are done.
        fraction: of the current epoch that is done.
        epoch_elapsed: seconds since the current epoch began.
    """
    # an epoch before knows how long validation takes
    epoch_seconds = clock.epoch_seconds or epoch_elapsed / fraction
    left = max(0.0, clock.limits.max_epochs - epochs - fraction) * epoch_seconds
    if clock.limits.max_time is not None:
        left = min(left, max(0.0, clock.limits.max_time - clock.elapsed - epoch_elapsed))
    return left


class TrainingBar(RichProgressBar):
    """Lightning's bar with columns of its own.

    Attributes:
        atoms_per_second: trained on in the current epoch so far; None before the first batch.
        left: what :func:`seconds_left` gives; None before the first batch.
    """

    def __init__(self):
        super().__init__()
        self.atoms_per_second: float | None = None
        self.left: float | None = None
        self._atoms, self._frames, self._mark = 0, 0, time.monotonic()

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Description, bar and number of batches, as Lightning has them, then the columns of this class."""
        return [*super().configure_columns(trainer)[:3], _SpeedColumn(self), _TimeColumn(self)]

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """Nothing: each epoch has a line of its own in the log."""
        return {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._mark = time.monotonic()  # a run that is resumed within an epoch does not begin that epoch

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, module)
        self._atoms, self._frames, self._mark = 0, 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Sample, batch_idx: int
    ) -> None:
        # first, because Lightning draws the bar
        elapsed = time.monotonic() - self._mark
        self._atoms += batch.graph.num_nodes  # known without waiting for the device
        self._frames += batch.graph.num_graphs
        self.atoms_per_second = self._atoms / elapsed
        # not by batches, whose number is not known beforehand where atoms or edges limit them
        data = trainer.datamodule
        frames = len(data.train) * data.config.passes_per_epoch
        fraction = min(1.0, self._frames * trainer.world_size / frames)
        self.left = seconds_left(module.clock, trainer.current_epoch, fraction, elapsed)
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


class _Column(ProgressColumn):
    max_refresh = 0.5  # numbers that change more often cannot be read

    def __init__(self, bar: TrainingBar):
        super().__init__()
        self.bar = bar


class _SpeedColumn(_Column):
    def render(self, task: Task) -> Text:
        value = self.bar.atoms_per_second
        return Text("" if value is None else f"{value:,.0f} atoms/s")


class _TimeColumn(_Column):
    def render(self, task: Task) -> Text:
        value = self.bar.left
        return Text("" if value is None else f"{timedelta(seconds=round(value))} left", style="dim")
