"""What the potentials compute. No files, no neighbour search, no devices chosen."""

from nequip_md.model.build import build_model, with_dtype
from nequip_md.model.config import PRESETS, AllegroConfig, NequIPConfig, PotentialConfig, ZBLConfig, preset
from nequip_md.model.potential import Potential, energy_and_gradient

__all__ = [
    "PRESETS",
    "AllegroConfig",
    "NequIPConfig",
    "Potential",
    "PotentialConfig",
    "ZBLConfig",
    "build_model",
    "energy_and_gradient",
    "preset",
    "with_dtype",
]
