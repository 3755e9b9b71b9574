"""Callbacks of Lightning's trainer: the best model, and the state of an interrupted run."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nequip_md import checkpoint
from nequip_md.interrupt import Interrupted, hold, release, take_back_signals, uninterrupted
from nequip_md.training.lightning_module import PotentialModule
from nequip_md.training.parallel import are_connected


class BestModel(L.Callback):
    """Writes a native checkpoint after each validation with a lower loss than all before it.

    Attributes:
        path: path of the checkpoint, which is replaced.
        loss: the lowest validation loss so far.
    """

    def __init__(self, path: Path):
        self.path, self.loss = path, math.inf

    def on_validation_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if trainer.sanity_checking:
            return
        if module.config.loss.changes_at(trainer.current_epoch + 1):  # earlier losses had other weights
            self.loss = math.inf
        if not module.validation_loss < self.loss:
            return
        if trainer.is_global_zero:
            found = {"epoch": trainer.current_epoch + 1, "metrics": {"validation": module.validation_errors}}
            checkpoint.save(self.path, module.evaluated, training=module.record | found)
        self.loss = module.validation_loss  # last: an interrupted run writes the file when it is resumed

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.path.exists():  # if it was lost, the best model from now on is kept
            self.loss = state["loss"]


class InterruptedState(Checkpoint):
    """Saves the state of a run that is interrupted within an epoch; and lets interrupts wait from when an epoch is counted as
    complete until its state is saved.

    Several processes hold interrupts all the time but in validation, and end together
    (:func:`~nequip_md.training.parallel.stop_together`).

    It has to stand after the callback that saves the state of an epoch.

    Attributes:
        path: of the state, which is replaced.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if are_connected():  # Lightning's handler would send a message, in the midst of others
            take_back_signals()
            hold()

    def on_validation_start(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if are_connected():  # validation may take long, and nothing is lost if one process ends in it
            release()

    def on_validation_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if are_connected():
            hold()

    def on_train_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if are_connected():
            release()

    def on_train_epoch_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        release()  # the module holds interrupts

    def on_exception(self, trainer: L.Trainer, module: PotentialModule, exception: BaseException) -> None:
        interrupts = (Interrupted, SIGTERMException, KeyboardInterrupt)
        if isinstance(exception, interrupts) and trainer.is_global_zero and module.is_between_steps:
            with suppress(Interrupted), uninterrupted():  # it ends already
                trainer.save_checkpoint(self.path)
