"""Names of a package whose modules are imported when the names are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, sources: Mapping[str, tuple[str, str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package that offers names without importing their modules.

    Args:
        package: the package's ``__name__``.
        sources: module and name there, by the name that the package offers.

    Returns:
        ``__getattr__``, which raises AttributeError for a name that is not in ``sources``, and ``__dir__``, which lists
        these names beside those that the package has.
    """

    def get_attribute(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = sources[name]
        value = getattr(import_module(module), attribute)
        setattr(sys.modules[package], name, value)  # so that this function is not asked again
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sources})

    return get_attribute, list_names
