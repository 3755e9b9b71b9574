"""Callbacks of Lightning's trainer: the best model is written as soon as it is found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L

from nequip_md import checkpoint
from nequip_md.training.lightning_module import PotentialModule


class BestModel(L.Callback):
    """Writes a native checkpoint after each validation with a lower loss than all before it.

    Attributes:
        path: path of the checkpoint, which is replaced.
        loss: the lowest validation loss so far.
    """

    def __init__(self, path: Path):
        self.path, self.loss = path, math.inf

    def on_validation_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if trainer.sanity_checking or not module.validation_loss < self.loss:
            return
        self.loss = module.validation_loss
        if trainer.is_global_zero:
            found = {"epoch": trainer.current_epoch + 1, "metrics": {"validation": module.validation_errors}}
            checkpoint.save(self.path, module.evaluated, training=module.record | found)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.path.exists():  # if it was lost, the best model from now on is kept
            self.loss = state["loss"]
