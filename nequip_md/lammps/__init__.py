"""LAMMPS: build the plugin that provides ``pair_style nequip``, find it, and start LAMMPS with it.

Nothing here imports torch: the ``lmp`` command imports this module each time it starts.
"""

from nequip_md.lammps.build import build
from nequip_md.lammps.plugin import plugin_path
from nequip_md.lammps.start import start

__all__ = ["build", "plugin_path", "start"]
