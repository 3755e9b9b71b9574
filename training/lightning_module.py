"""One training step and one validation step, for Lightning's trainer."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning as L
import torch
from torch import nn

from nequip_md.errors import NequIPMDError
from nequip_md.files import TRAINING_STATE_KEY
from nequip_md.model.potential import Potential
from nequip_md.training.compiled_step import make_step
from nequip_md.training.config import TrainingConfig
from nequip_md.training.divergence import FirstFailure, describe_failure, describe_frames
from nequip_md.training.ema import AveragedModel
from nequip_md.training.loss import errors, label_counts, predict
from nequip_md.training.metrics import ErrorMetrics, weighted_loss
from nequip_md.training.optimizers import freeze, parameter_groups, warmed_up
from nequip_md.training.parallel import sum_over_processes
from nequip_md.training.report import epoch_line
from nequip_md.training.samples import Sample
from nequip_md.training.schedule import Clock, make_schedule
from nequip_md.training.step import trained

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
        self.failures = {"train": FirstFailure(), "validation": FirstFailure()}
        self.clock = Clock(config.stop)
        self._resumed: dict[str, Any] | None = None

    @property
    def evaluated(self) -> Potential:
        return self.model if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.config.optimizer
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options),
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.schedule = make_schedule(self.config.schedule, optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        # here the model is on its device
        frames = self.config.data.frames_in_batch or self.config.data.batch_size
        self.step = make_step(
            self.model,
            self.config.loss,
            with_stress=self.config.loss.stress > 0,
            compiled=self.config.compile,
            steps=self.config.stop.max_epochs * math.ceil(len(self.trainer.datamodule.train) / frames),
        )

    def training_step(self, batch: Sample, index: int) -> None:
        (counts,) = sum_over_processes([label_counts(batch)])
        try:
            result = self.step(batch, counts)
        except torch.OutOfMemoryError as error:
            graph = batch.graph
            raise NequIPMDError(
                f"the memory of the GPU does not suffice for a step of {graph.num_graphs} frames with {graph.num_nodes} atoms and"
                f" {graph.num_edges} edges ({describe_frames(batch, self.trainer.datamodule)}); set data.max_edges to less, or"
                f" data.batch_size. PyTorch says: {str(error).splitlines()[0]}"
            ) from None
        self.failures["train"].update(result.prediction, batch)
        self.train_metrics.update(errors(result.prediction, batch))
        weights = trained(self.model)
        for weight, gradient in zip(weights, sum_over_processes(result.gradients), strict=True):
            weight.grad = gradient
        if self.config.optimizer.gradient_clip is not None:
            nn.utils.clip_grad_norm_(weights, self.config.optimizer.gradient_clip)
        with warmed_up(self.optimizers(), self.trainer.global_step, self.config.optimizer.warmup_steps):
            self.optimizers().step()
        if self.average is not None:
            self.average.update(self.model, self.trainer.global_step)

    def on_validation_epoch_start(self) -> None:
        self.validation_metrics.reset()

    def validation_step(self, batch: Sample, index: int) -> None:
        prediction = predict(self.evaluated, batch, with_stress=self.with_stress)
        self.failures["validation"].update(prediction, batch)
        self.validation_metrics.update(errors(prediction, batch))

    def on_validation_epoch_end(self) -> None:
        self.validation_errors = self.validation_metrics.compute()
        self.validation_loss = weighted_loss(self.validation_errors, self.config.loss)
        if not math.isfinite(self.validation_loss):
            raise NequIPMDError(
                f"the validation loss is {self.validation_loss} after epoch {self.trainer.current_epoch + 1}:"
                " training has diverged; lower optimizer.learning_rate or set optimizer.gradient_clip, and look for"
                f" frames that are not right: {describe_failure(self.failures, self.trainer.datamodule)}"
            )

    def on_train_start(self) -> None:
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
