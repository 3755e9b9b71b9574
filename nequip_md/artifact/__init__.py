"""Reading and running an artifact. Nothing here imports PyTorch's compiler."""

from nequip_md.artifact.artifact import Artifact, load_artifact
from nequip_md.artifact.metadata import read_metadata

__all__ = ["Artifact", "load_artifact", "read_metadata"]
