"""Sections of a training file that say how steps are taken: loss, optimizer, schedule of the learning rate, end."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Section(BaseModel):
    """A part of a training file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def as_list(value: Any) -> Any:
    """A list of a text alone; anything else as it is."""
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(as_list)]
"""One name of a label or several, of which the first that a frame has is used; or patterns of names of weights."""


QUANTITIES = ("energy", "force", "stress")
"""What a loss is made of."""


class LossChange(Section):
    """Weights of the loss from an epoch on; those that are None stay as they were."""

    epoch: int = Field(ge=2)
    """The first epoch with these weights; the epochs of a run are 1, 2, ..."""
    energy: NonNegativeFloat | None = None
    force: NonNegativeFloat | None = None
    stress: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _something(self):
        if not self.weights:
            raise ValueError("changes no weight; give energy, force or stress")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are given."""
        return {name: w for name in QUANTITIES if (w := getattr(self, name)) is not None}


class LossConfig(Section):
    """Weights of the mean errors: energy per atom (eV), forces (eV/angstrom), stress (eV/angstrom^3)."""

    energy: NonNegativeFloat = 1.0
    force: NonNegativeFloat = 1.0
    stress: NonNegativeFloat = 0.0
    kind: Literal["mse", "mae", "huber", "stratified_huber"] = "mse"
    """What is averaged: x^2, |x|, or Huber's function of an error x (:func:`nequip_md.training.steps.loss.penalty`)."""
    huber_delta: PositiveFloat = 0.01
    """Where Huber's function turns from a parabola into a line, in the unit of each error."""
    schedule: list[LossChange] = []
    """Other weights from later epochs on, in the order of the epochs."""

    @model_validator(mode="after")
    def _something(self):
        epochs = [change.epoch for change in self.schedule]
        for earlier, later in pairwise(epochs):
            if later <= earlier:
                raise ValueError(f"the epochs of schedule must increase, but {later} follows {earlier}")
        for epoch in (1, *epochs):
            if not any(self._weights(epoch).values()):
                raise ValueError(
                    "at least one of energy, force and stress needs a weight above 0"
                    + (f"; schedule leaves none from epoch {epoch} on" if epoch > 1 else "")
                )
        return self

    def _weights(self, epoch: int) -> dict[str, float]:
        weights = {name: getattr(self, name) for name in QUANTITIES}
        for change in self.schedule:
            if change.epoch <= epoch:
                weights |= change.weights
        return weights

    def at(self, epoch: int) -> LossConfig:
        """The loss of an epoch, without a schedule.

        Args:
            epoch: from 1.
        """
        return self.model_copy(update={**self._weights(epoch), "schedule": []})

    def changes_at(self, epoch: int) -> bool:
        """Whether an epoch is the first one with other weights than the epoch before."""
        return epoch > 1 and self._weights(epoch) != self._weights(epoch - 1)

    def largest_weight(self, name: str) -> float:
        """The largest weight that ``energy``, ``force`` or ``stress`` has in any epoch."""
        return max(self._weights(epoch)[name] for epoch in (1, *(change.epoch for change in self.schedule)))

    def without_weights(self) -> LossConfig:
        """The loss with weight 1 for what any epoch needs and 0 for the rest: what does not change in a run."""
        weights = {name: float(self.largest_weight(name) > 0) for name in QUANTITIES}
        return self.model_copy(update={**weights, "schedule": []})


class OptimizerConfig(Section):
    """How weights follow the gradient."""

    kind: Literal["adamw", "muon", "schedule_free"] = "adamw"
    """AdamW (arXiv:1711.05101); Muon for matrices and AdamW for the rest (arXiv:2502.16982); schedule-free AdamW
    (arXiv:2405.15682), which averages the weights itself and needs no schedule."""
    learning_rate: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Of Muon."""
    gradient_clip: PositiveFloat | None = None
    """Largest norm of the gradient of all weights together; None leaves it as it is."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    """Decay of the running average of the weights, for each step; None uses the weights themselves."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly to that of the schedule."""
    freeze: Names = []
    """Patterns of names of weights that stay as they are, such as ``embedding.*``."""
    rate_factors: dict[str, PositiveFloat] = {}
    """Factors of the learning rate for weights whose names a pattern matches; the first that matches counts."""

    @model_validator(mode="before")
    @classmethod
    def _no_second_average(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("kind") != "schedule_free":
            return content
        if content.get("ema_decay") is not None:
            raise ValueError("kind: schedule_free averages the weights itself; leave ema_decay out")
        return {**content, "ema_decay": None}

    @model_validator(mode="after")
    def _has_momentum(self):
        if self.kind == "schedule_free" and self.betas[0] == 0:
            raise ValueError("kind: schedule_free needs a first value of betas above 0")
        return self


class PlateauSchedule(Section):
    """Multiply the learning rate by ``factor`` after more than ``patience`` epochs without a better validation loss."""

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.8
    patience: int = Field(10, ge=0)
    min_learning_rate: NonNegativeFloat = 1e-6


class CosineSchedule(Section):
    """Lower the learning rate along half a cosine to ``final_fraction`` of it, over ``max_epochs`` or ``max_time``."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01


class ConstantSchedule(Section):
    """Leave the learning rate as it is."""

    kind: Literal["constant"] = "constant"


def _seconds(value: Any) -> Any:
    """``HH:MM:SS``, ``90 s``, ``7 min``, ``2 h`` or a number of seconds (YAML reads an unquoted 7:00 as 420)."""
    if not isinstance(value, str):
        return value
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d)", value.strip()):
        hours, minutes, seconds = map(int, clock.groups())
        return 3600 * hours + 60 * minutes + seconds
    if amount := re.fullmatch(r"([\d.]+)\s*(s|min|h)", value.strip()):
        return float(amount[1]) * {"s": 1, "min": 60, "h": 3600}[amount[2]]
    raise ValueError(f"{value!r} is not a time; write 'HH:MM:SS', '90 s', '7 min', '2 h' or a number of seconds")


Schedule = Annotated[PlateauSchedule | CosineSchedule | ConstantSchedule, Field(discriminator="kind")]


class StopConfig(Section):
    """When training ends: at whichever comes first. Checked after each epoch."""

    max_epochs: PositiveInt = 1000
    max_time: Annotated[PositiveFloat, BeforeValidator(_seconds)] | None = None
    """Seconds of training, those before a resume included; no epoch is begun that would probably not end in time."""
    patience: PositiveInt | None = None
    """Stop after this many epochs without a better validation loss."""
