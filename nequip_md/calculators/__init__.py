"""Python engines that run an artifact."""

from nequip_md.calculators.ase import NequIPMDCalculator

__all__ = ["NequIPMDCalculator"]
