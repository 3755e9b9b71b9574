"""Export of a model to one compiled artifact: trace, compile, package, check. :mod:`nequip_md.artifact` reads artifacts."""

from typing import TYPE_CHECKING

from nequip_md.lazy import lazy_names

if TYPE_CHECKING:
    from nequip_md.export.checkpoint import export_checkpoint
    from nequip_md.export.metadata import artifact_metadata, model_metadata
    from nequip_md.export.package import write_artifact
    from nequip_md.export.validate import validate_artifact

__all__ = ["artifact_metadata", "export_checkpoint", "model_metadata", "validate_artifact", "write_artifact"]

# names are loaded lazily: the commands import this package, and their --help must not wait for torch
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "artifact_metadata": ("nequip_md.export.metadata", "artifact_metadata"),
        "export_checkpoint": ("nequip_md.export.checkpoint", "export_checkpoint"),
        "model_metadata": ("nequip_md.export.metadata", "model_metadata"),
        "validate_artifact": ("nequip_md.export.validate", "validate_artifact"),
        "write_artifact": ("nequip_md.export.package", "write_artifact"),
    },
)
