"""One training step and one validation step, for Lightning's trainer."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.files import TRAINING_STATE_KEY
from nequip_md.interrupt import hold, uninterrupted
from nequip_md.model.potential import Potential
from nequip_md.training.config import TrainingConfig
from nequip_md.training.data.samples import Sample
from nequip_md.training.divergence import describe_failure, describe_frames
from nequip_md.training.evaluation.metrics import ErrorMetrics, weighted_loss
from nequip_md.training.folder import DIVERGED
from nequip_md.training.parallel import are_connected, stop_together, sum_over_processes
from nequip_md.training.position import between_steps
from nequip_md.training.report.tables import epoch_line
from nequip_md.training.step_config import QUANTITIES
from nequip_md.training.steps.ema import averaged
from nequip_md.training.steps.loss import divisors, errors, label_counts, predict
from nequip_md.training.steps.optimizers import freeze, make_optimizer, warmed_up
from nequip_md.training.steps.recorded_step import (
    CheckedRecordedStep,
    RecordedStep,
    TalliedStep,
    make_step,
    validation_step,
)
from nequip_md.training.steps.schedule import Clock, make_schedule
from nequip_md.training.steps.step import Tally, trained
from nequip_md.training.steps.update import RecordedUpdate, Update, on_the_device_of_its_weights

log = logging.getLogger(__name__)

STATE_KEY = TRAINING_STATE_KEY
"""Where a Lightning checkpoint of this module keeps what Lightning does not save itself."""


class PotentialModule(L.LightningModule):
    """A potential in training.

    After each epoch the learning rate is changed and the limits are checked here, before Lightning saves its
    checkpoint, so that a resumed run continues as if it had never stopped. Interrupts wait while a step is taken, and
    from the end of an epoch until its state is saved (:mod:`nequip_md.interrupt`).

    Attributes:
        model: takes the steps.
        evaluated: what is validated and saved: the averaged weights, or without averaging the model itself.
        validation_errors: of the last validation, as ``ErrorMetrics.compute`` gives them.
        validation_loss: of the last validation.
        batches_done: number of batches of the current epoch that each process has taken.
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
        self.average = averaged(model, config.optimizer)
        self.config, self.with_stress, self.record = config, with_stress, record or {}
        self.loss = config.loss.at(1)
        self.trains_stress = config.loss.largest_weight("stress") > 0
        self.train_metrics = ErrorMetrics(config.loss, with_stress=self.trains_stress)
        self.validation_metrics = ErrorMetrics(config.loss, with_stress=with_stress)
        self.validation_errors: dict[str, float] = {}
        self.validation_loss = math.inf
        self.tallies = {"train": Tally(), "validation": Tally()}
        self.failures = {name: tally.failure for name, tally in self.tallies.items()}
        self.compiled_validation: TalliedStep | RecordedStep | None = None
        self.clock = Clock(config.stop)
        self.batches_done = 0
        self._state_is_whole = False
        self._resumed: dict[str, Any] | None = None

    @property
    def evaluated(self) -> Potential:
        return self.model if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.config.optimizer)
        self.schedule = make_schedule(self.config.schedule, optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        # here the model is on its device
        data = self.config.data
        frames = data.frames_in_batch or data.batch_size
        self.step = make_step(
            self.model,
            self.config.loss.without_weights(),
            self.tallies["train"],
            with_stress=self.trains_stress,
            # what auto takes depends on earlier runs
            compiled="no" if self.config.deterministic and self.config.compile == "auto" else self.config.compile,
            steps=self.config.stop.max_epochs
            * math.ceil(len(self.trainer.datamodule.train) * data.passes_per_epoch / frames),
        )
        optimizer = self.optimizers().optimizer
        self.weights = trained(self.model)  # once, because the search takes as long as other parts of a step
        update = Update(self.weights, optimizer, self.config.optimizer.gradient_clip, self.average, self.model)
        recordable = isinstance(optimizer, torch.optim.AdamW) and isinstance(self.step, CheckedRecordedStep)
        # Lightning calls the step of the optimizer, and counts it
        optimizer.step = RecordedUpdate(update) if recordable else update

    def training_step(self, batch: Sample, index: int) -> None:
        if index < self.batches_done:  # a run that was interrupted after this step has it behind it
            return
        if are_connected():
            stop_together(self.device)
        with uninterrupted():
            self._state_is_whole = False
            self._take_step(batch, index)
            self.batches_done, self._state_is_whole = index + 1, True

    def _take_step(self, batch: Sample, index: int) -> None:
        (counts,) = sum_over_processes([label_counts(batch)])
        counts = divisors(counts, self.loss_weights)
        self.tallies["train"].begin(index, self.device)
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
        for weight, gradient in zip(self.weights, summed, strict=True):
            weight.grad = gradient
        if self.average is not None:
            self.average.before_step(self.trainer.global_step + 1)
        with warmed_up(self.optimizers(), self.trainer.global_step, self.config.optimizer.warmup_steps):
            self.optimizers().step()

    def on_validation_epoch_start(self) -> None:
        self.validation_metrics.reset()
        self.failures["validation"].reset()
        if self.average is not None:
            self.average.before_evaluation(self.model, self.trainer.optimizers[0])
        if self.compiled_validation is None and self.with_stress == self.trains_stress:
            self.compiled_validation = validation_step(self.step, self.evaluated, self.tallies["validation"])

    def validation_step(self, batch: Sample, index: int) -> None:
        if self.compiled_validation is not None:
            self.tallies["validation"].begin(index, self.device)
            self.compiled_validation(batch, label_counts(batch))
            return
        prediction = predict(self.evaluated, batch, with_stress=self.with_stress)
        self.failures["validation"].update(prediction, batch, index)
        self.validation_metrics.update(errors(prediction, batch))

    def on_validation_epoch_end(self) -> None:
        self.tallies["validation"].move_totals(self.validation_metrics)
        self.validation_errors = self.validation_metrics.compute()
        self.validation_loss = weighted_loss(self.validation_errors, self.loss)
        if not math.isfinite(self.validation_loss):
            path = Path(self.config.output) / DIVERGED
            raise NequIPMDError(
                f"the validation loss is {self.validation_loss} after epoch {self.trainer.current_epoch + 1}:"
                " training has diverged; lower optimizer.learning_rate or set optimizer.gradient_clip, and look for"
                f" frames that are not right: {describe_failure(self.failures, self.trainer.datamodule, path, self.device)}"
            )

    def on_train_start(self) -> None:
        # a run that is resumed may have been on another device
        if isinstance(self.optimizers().optimizer, torch.optim.AdamW):
            on_the_device_of_its_weights(self.optimizers().optimizer)
        state, self._resumed = self._resumed, None
        if state is None:
            self.clock.start()
        else:
            self.schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["rng"].cpu())
            self.batches_done = state.get("batches", 0)
            self.clock.start(state["elapsed"], state.get("in_epoch", 0.0))
            if self.batches_done:
                self.train_metrics.continue_from(state["train_sums"])
        self._set_loss()
        self._state_is_whole = True

    def on_train_epoch_start(self) -> None:
        if self.batches_done:  # this is the rest of an epoch
            return
        self.train_metrics.reset()
        self.failures["train"].reset()
        self._set_loss()
        epoch = self.trainer.current_epoch + 1
        if self.config.loss.changes_at(epoch):
            weights = ", ".join(f"{name} {getattr(self.loss, name):g}" for name in QUANTITIES)
            log.info("weights of the loss from epoch %d on: %s; the best model is looked for anew", epoch, weights)
            self.schedule.forget_losses()
            for callback in self.trainer.early_stopping_callbacks:
                callback.best_score, callback.wait_count = torch.tensor(math.inf), 0

    def _set_loss(self) -> None:
        """Take the weights of the loss in the current epoch."""
        self.loss = self.config.loss.at(self.trainer.current_epoch + 1)
        weights = [getattr(self.loss, name) for name in QUANTITIES]
        self.loss_weights = torch.tensor(weights, dtype=torch.float64, device=self.device)

    def on_train_epoch_end(self) -> None:
        hold()  # until the state is saved
        self._state_is_whole = False
        epochs = self.trainer.current_epoch + 1
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.tallies["train"].move_totals(self.train_metrics)
        train_errors = self.train_metrics.compute()
        self.clock.after_epoch(epochs)
        # decisions that follow from it are the same in all processes
        self.clock.elapsed, self.clock.epoch_seconds = self.trainer.strategy.broadcast(
            (self.clock.elapsed, self.clock.epoch_seconds)
        )
        values = {"train/loss": weighted_loss(train_errors, self.loss), "validation/loss": self.validation_loss}
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
        self.batches_done, self._state_is_whole = 0, True

    @property
    def is_between_steps(self) -> bool:
        """Whether a state can be saved that is not yet that of an epoch: after a step, with weights that are numbers."""
        if not (self._state_is_whole and self.batches_done > 0):
            return False
        return all(bool(torch.isfinite(p).all()) for p in self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE_KEY] = {
            "config": self.config.model_dump(mode="json"),
            "record": self.record,
            "schedule": self.schedule.state_dict(),
            "elapsed": self.clock.elapsed,
            "rng": torch.get_rng_state(),
            "batches": self.batches_done,
        }
        if self.batches_done:
            self.tallies["train"].move_totals(self.train_metrics)
            checkpoint[STATE_KEY] |= {"in_epoch": self.clock.in_epoch, "train_sums": self.train_metrics.sums()}
            checkpoint["loops"] = between_steps(
                checkpoint["loops"], epochs=self.trainer.current_epoch, batches=self.batches_done
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint[STATE_KEY]
