"""nequip-md: trained NequIP and Allegro potentials in molecular dynamics.

The package takes a checkpoint (its own or upstream ``nequip``'s), compiles it into one ``.pt2`` artifact
(:mod:`nequip_md.export`), and runs that artifact in LAMMPS (:mod:`nequip_md.lammps`), in ASE
(:mod:`nequip_md.calculators`) or, through a C header, in any other engine.

Units everywhere: lengths in angstrom, energies in electronvolt, forces in eV/angstrom, stress in eV/angstrom^3.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nequip_md.errors import ExtrapolationWarning, NequIPMDError

if TYPE_CHECKING:
    from nequip_md.model import Potential

__version__ = "0.1.0"

__all__ = ["ExtrapolationWarning", "NequIPMDError", "__version__", "load"]


def load(path: str | os.PathLike, *, allow_pickle: bool = False) -> Potential:
    """Read a checkpoint of any supported kind and return the eager model.

    Args:
        path: a native checkpoint, an upstream ``.ckpt`` or an upstream ``.nequip.zip``.
        allow_pickle: permit formats that can only be read by executing code stored in the file.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        NequIPMDError: the file is missing, is of no known kind, or uses an option that is not implemented.
    """
    from nequip_md.checkpoint import load as load_checkpoint

    return load_checkpoint(path, allow_pickle=allow_pickle)
