"""From a model to one compiled artifact: trace, compile, package, check. :mod:`nequip_md.artifact` reads it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nequip_md.export.metadata import artifact_metadata, model_metadata
    from nequip_md.export.package import write_artifact

__all__ = ["artifact_metadata", "model_metadata", "write_artifact"]

_MODULES = {"artifact_metadata": "metadata", "model_metadata": "metadata", "write_artifact": "package"}


def __getattr__(name: str) -> Any:
    # the commands import this package, and their --help must not wait for torch
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
