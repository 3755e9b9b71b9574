"""nequip-md: trained NequIP and Allegro potentials in molecular dynamics.

The package takes a checkpoint (its own or upstream ``nequip``'s), compiles it into one ``.pt2`` artifact, and runs that
artifact in LAMMPS (:mod:`nequip_md.lammps`), in ASE or, through a C header, in any other engine. What most programs need
is offered here; importing this package imports neither PyTorch nor anything else that is slow, until a name is used:

* :func:`train`: train a potential, as ``nequip-md-train`` does
* :func:`evaluate`: errors of a checkpoint or an artifact on labelled structures, as ``nequip-md-evaluate`` gives them
* :func:`load_checkpoint`: the model of a checkpoint, in eager mode
* :func:`export_checkpoint`: compile a checkpoint into an artifact, as ``nequip-md-export`` does
* :func:`validate_artifact`: check an artifact, as ``nequip-md-validate`` does
* :func:`load_artifact`: load an artifact and evaluate it on graphs
* :class:`NequIPMDCalculator`: the ASE calculator of an artifact

Units everywhere: lengths in angstrom, energies in electronvolt, forces in eV/angstrom, stress in eV/angstrom^3.
"""

from typing import TYPE_CHECKING

from nequip_md.errors import ExtrapolationWarning, NequIPMDError
from nequip_md.lazy import lazy_names

if TYPE_CHECKING:
    from nequip_md.artifact import load_artifact
    from nequip_md.calculators import NequIPMDCalculator
    from nequip_md.checkpoint import load as load_checkpoint
    from nequip_md.export import export_checkpoint, validate_artifact
    from nequip_md.training import evaluate_model as evaluate
    from nequip_md.training import train

__version__ = "0.1.0"

__all__ = [
    "ExtrapolationWarning",
    "NequIPMDCalculator",
    "NequIPMDError",
    "__version__",
    "evaluate",
    "export_checkpoint",
    "load_artifact",
    "load_checkpoint",
    "train",
    "validate_artifact",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NequIPMDCalculator": ("nequip_md.calculators", "NequIPMDCalculator"),
        "evaluate": ("nequip_md.training", "evaluate_model"),
        "export_checkpoint": ("nequip_md.export", "export_checkpoint"),
        "load_artifact": ("nequip_md.artifact", "load_artifact"),
        "load_checkpoint": ("nequip_md.checkpoint", "load"),
        "train": ("nequip_md.training", "train"),
        "validate_artifact": ("nequip_md.export", "validate_artifact"),
    },
)
