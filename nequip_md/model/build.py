"""A model from its configuration."""

from __future__ import annotations

from nequip_md.model.allegro import Allegro
from nequip_md.model.config import AllegroConfig, NequIPConfig, PotentialConfig
from nequip_md.model.nequip import NequIP
from nequip_md.model.potential import Potential


def build_model(config: PotentialConfig) -> Potential:
    """A freshly initialised model of the kind that ``config`` names (``torch.manual_seed`` fixes its weights)."""
    if isinstance(config, AllegroConfig):
        return Allegro(config)
    if isinstance(config, NequIPConfig):
        return NequIP(config)
    raise TypeError(f"no model kind for {type(config).__name__}")


def with_dtype(model: Potential, dtype: str) -> Potential:
    """The same potential with its network in another dtype (``float32`` or ``float64``), weights rounded to it."""
    if model.config.dtype == dtype:
        return model
    converted = build_model(model.config.model_copy(update={"dtype": dtype}))
    converted.load_state_dict(model.state_dict())
    return converted.train(model.training)
