"""``nequip-md-info``: what a model file holds, and what is installed on this machine."""

from typing import TYPE_CHECKING

from nequip_md.lazy import lazy_names

if TYPE_CHECKING:
    from nequip_md.info.installation import installation_facts
    from nequip_md.info.model_file import model_facts

__all__ = ["installation_facts", "model_facts"]

# the command imports this package, and its --help must not wait for torch
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "installation_facts": ("nequip_md.info.installation", "installation_facts"),
        "model_facts": ("nequip_md.info.model_file", "model_facts"),
    },
)
