"""One training step and one validation step, for Lightning's trainer."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning as L
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.files import TRAINING_STATE_KEY
from nequip_md.model.potential import Potential
from nequip_md.training.config import TrainingConfig
from nequip_md.training.divergence import describe_failure, describe_frames
from nequip_md.training.ema import AveragedModel
from nequip_md.training.loss import errors, label_counts, predict
from nequip_md.training.metrics import ErrorMetrics, weighted_loss
from nequip_md.training.optimizers import freeze, parameter_groups, warmed_up
from nequip_md.training.parallel import sum_over_processes
from nequip_md.training.recorded_step import (
    CheckedRecordedStep,
    RecordedStep,
    TalliedStep,
    make_step,
    validation_step,
)
from nequip_md.training.report import epoch_line
from nequip_md.training.samples import Sample
from nequip_md.training.schedule import Clock, make_schedule
from nequip_md.training.step import Tally, trained
from nequip_md.training.update import RecordableAdamW, RecordedUpdate, Update, on_the_device_of_its_weights

log = logging.getLogger(__name__)

STATE_KEY = TRAINING_STATE_KEY
"""Where a Lightning checkpoint of this module keeps what Lightning does not save itself."""


class PotentialModule(L.LightningModule):
    """A potential in training.

    After each epoch the learning rate is changed and the limits are checked here, before Lightning saves its
    checkpoint, so that a resumed run continues as if it had never stopped.

    Attributes:
        model: takes the steps.
        evaluated: what is validated and saved: the averaged weights, or without averaging the model itself.
        validation_errors: of the last validation, as ``ErrorMetrics.compute`` gives them.
        validation_loss: of the last validation.
        record: plain data to keep in the resume state beside the configuration.
    """

    def __init__(
        self, model: Potential, config: TrainingConfig, *, with_stress: bool, record: dict[str, Any] | None = None
    ):
        """
        Args:
            with_stress: report errors of stresses, whether or not the loss has them.
        """
        super().__init__()
        # the gradient comes from the step, not from a backward pass
        self.automatic_optimization = False
        self.model = freeze(model, config.optimizer)
        self.average = (
            AveragedModel(model, config.optimizer.ema_decay) if config.optimizer.ema_decay is not None else None
        )
        self.config, self.with_stress, self.record = config, with_stress, record or {}
        self.train_metrics = ErrorMetrics(config.loss, with_stress=config.loss.stress > 0)
        self.validation_metrics = ErrorMetrics(config.loss, with_stress=with_stress)
        self.validation_errors: dict[str, float] = {}
        self.validation_loss = math.inf
        self.tallies = {"train": Tally(), "validation": Tally()}
        self.failures = {name: tally.failure for name, tally in self.tallies.items()}
        self.compiled_validation: TalliedStep | RecordedStep | None = None
        self.clock = Clock(config.stop)
        self._resumed: dict[str, Any] | None = None

    @property
    def evaluated(self) -> Potential:
        return self.model if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.config.optimizer
        optimizer = RecordableAdamW(
            parameter_groups(self.model, options),
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=self.device.type == "cuda",
            capturable=self.device.type == "cuda",
        )
        self.schedule = make_schedule(self.config.schedule, optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        # here the model is on its device
        frames = self.config.data.frames_in_batch or self.config.data.batch_size
        self.step = make_step(
            self.model,
            self.config.loss,
            self.tallies["train"],
            with_stress=self.config.loss.stress > 0,
            compiled=self.config.compile,
            steps=self.config.stop.max_epochs * math.ceil(len(self.trainer.datamodule.train) / frames),
        )
        optimizer = self.optimizers().optimizer
        update = Update(trained(self.model), optimizer, self.config.optimizer.gradient_clip, self.average, self.model)
        optimizer.instead = RecordedUpdate(update) if isinstance(self.step, CheckedRecordedStep) else update

    def training_step(self, batch: Sample, index: int) -> None:
        (counts,) = sum_over_processes([label_counts(batch)])
        try:
            gradients = self.step(batch, counts)
        except torch.OutOfMemoryError as error:
            graph = batch.graph
            raise NequIPMDError(
                f"the memory of the GPU does not suffice for a step of {graph.num_graphs} frames with {graph.num_nodes} atoms and"
                f" {graph.num_edges} edges ({describe_frames(batch, self.trainer.datamodule)}); set data.max_edges to less, or"
                f" data.batch_size. PyTorch says: {str(error).splitlines()[0]}"
            ) from None
        summed = sum_over_processes(gradients)
        if isinstance(self.step, CheckedRecordedStep) and summed[0] is not gradients[0]:
            # the recording of the update reads them in their place
            torch._foreach_copy_(gradients, summed)
            summed = gradients
        for weight, gradient in zip(trained(self.model), summed, strict=True):
            weight.grad = gradient
        if self.average is not None:
            self.average.before_step(self.trainer.global_step + 1)
        with warmed_up(self.optimizers(), self.trainer.global_step, self.config.optimizer.warmup_steps):
            self.optimizers().step()

    def on_validation_epoch_start(self) -> None:
        self.validation_metrics.reset()
        if self.compiled_validation is None and self.with_stress == (self.config.loss.stress > 0):
            self.compiled_validation = validation_step(self.step, self.evaluated, self.tallies["validation"])

    def validation_step(self, batch: Sample, index: int) -> None:
        if self.compiled_validation is not None:
            self.compiled_validation(batch, label_counts(batch))
            return
        prediction = predict(self.evaluated, batch, with_stress=self.with_stress)
        self.failures["validation"].update(prediction, batch)
        self.validation_metrics.update(errors(prediction, batch))

    def on_validation_epoch_end(self) -> None:
        totals = self.tallies["validation"].take_totals()
        if totals is not None:
            self.validation_metrics.add(totals)
        self.validation_errors = self.validation_metrics.compute()
        self.validation_loss = weighted_loss(self.validation_errors, self.config.loss)
        if not math.isfinite(self.validation_loss):
            raise NequIPMDError(
                f"the validation loss is {self.validation_loss} after epoch {self.trainer.current_epoch + 1}:"
                " training has diverged; lower optimizer.learning_rate or set optimizer.gradient_clip, and look for"
                f" frames that are not right: {describe_failure(self.failures, self.trainer.datamodule)}"
            )

    def on_train_start(self) -> None:
        # a run that is resumed may have been on another device
        on_the_device_of_its_weights(self.optimizers().optimizer)
        if self._resumed is not None:
            self.schedule.load_state_dict(self._resumed["schedule"])
            self.clock.elapsed = self._resumed["elapsed"]
            torch.set_rng_state(self._resumed["rng"].cpu())
            self._resumed = None
        self.clock.start()

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_train_epoch_end(self) -> None:
        epochs = self.trainer.current_epoch + 1
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.train_metrics.add(self.tallies["train"].take_totals())
        train_errors = self.train_metrics.compute()
        self.clock.after_epoch(epochs)
        # decisions that follow from it are the same in all processes
        self.clock.elapsed, self.clock.epoch_seconds = self.trainer.strategy.broadcast(
            (self.clock.elapsed, self.clock.epoch_seconds)
        )
        values = {"train/loss": weighted_loss(train_errors, self.config.loss), "validation/loss": self.validation_loss}
        values |= {f"train/{k}": v for k, v in train_errors.items()} | {
            f"validation/{k}": v for k, v in self.validation_errors.items()
        }
        values |= {"learning_rate": rate, "seconds": self.clock.elapsed}
        self.log_dict(values)
        log.info(epoch_line(epochs, values))
        self.schedule.after_epoch(self.validation_loss, self.clock.progress)
        if self.clock.out_of_time:
            log.info("stopping: the next epoch would end after max_time (%.0f s)", self.config.stop.max_time)
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE_KEY] = {
            "config": self.config.model_dump(mode="json"),
            "record": self.record,
            "schedule": self.schedule.state_dict(),
            "elapsed": self.clock.elapsed,
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint[STATE_KEY]
