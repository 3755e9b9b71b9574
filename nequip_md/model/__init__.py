"""What the potentials compute. No files, no neighbour search, no devices chosen."""

from typing import TYPE_CHECKING

from nequip_md.lazy import lazy_names
from nequip_md.model.config import PRESETS, AllegroConfig, NequIPConfig, PotentialConfig, ZBLConfig, preset
from nequip_md.model.potential import Potential, energy_and_gradient

if TYPE_CHECKING:
    from nequip_md.model.build import build_model, with_dtype
    from nequip_md.model.keep_types import keep_types

__all__ = [
    "PRESETS",
    "AllegroConfig",
    "NequIPConfig",
    "Potential",
    "PotentialConfig",
    "ZBLConfig",
    "build_model",
    "energy_and_gradient",
    "keep_types",
    "preset",
    "with_dtype",
]

# these import e3nn, which whoever checks an artifact does without
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **{name: ("nequip_md.model.build", name) for name in ("build_model", "with_dtype")},
        "keep_types": ("nequip_md.model.keep_types", "keep_types"),
    },
)
