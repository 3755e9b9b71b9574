"""From a model to one compiled artifact, and back: trace, compile, package, check, load."""

from nequip_md.export.artifact import Artifact, load_artifact
from nequip_md.export.metadata import artifact_metadata, model_metadata, read_metadata
from nequip_md.export.package import write_artifact

__all__ = ["Artifact", "artifact_metadata", "load_artifact", "model_metadata", "read_metadata", "write_artifact"]
