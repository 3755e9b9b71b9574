"""``nequip-md-lammps``: build the LAMMPS plugin, say where it is and what it was built from."""

from __future__ import annotations

import argparse
import shlex
import sys
import time

from nequip_md.cli import command_parser
from nequip_md.errors import NequIPMDError
from nequip_md.lammps.build import PLUGIN, build, state
from nequip_md.lammps.installation import Installation, in_tree_options, version


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser("lammps", "The LAMMPS plugin that provides pair_style nequip.")
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="compile the plugin against the installed torch and LAMMPS")
    builder.add_argument("--lammps", metavar="DIR", help="another LAMMPS: an installation prefix or a source tree")
    builder.add_argument("--mpi-include", metavar="DIR", help="folder of the mpi.h of that LAMMPS")
    builder.add_argument("-o", "--output", metavar="DIR", help="folder to make, instead of one in the user's cache")
    builder.add_argument("--force", action="store_true", help="compile even if it has been compiled before")
    commands.add_parser("path", help="print the folder of the plugin, for LAMMPS_PLUGIN_PATH")
    commands.add_parser(
        "intree", help="print the options with which LAMMPS' own cmake builds the pair style into LAMMPS"
    )
    commands.add_parser("info", help="print what the plugin is built from and whether it is built")
    options = parser.parse_args(argv)
    try:
        return {"build": _build, "path": _path, "intree": _in_tree, "info": _info}[options.command](options)
    except NequIPMDError as error:
        print(f"nequip-md-lammps: {error}", file=sys.stderr)
        return 1


def _build(options: argparse.Namespace) -> int:
    began = time.monotonic()
    folder = build(options.lammps, options.mpi_include, options.output, force=options.force, announce=print)
    print(f"{folder / PLUGIN} is ready ({time.monotonic() - began:.0f} s)")
    return 0


def _path(_: argparse.Namespace) -> int:
    folder, condition = state()
    if condition != "built":
        raise NequIPMDError("the plugin is not built yet; run: nequip-md-lammps build")
    print(folder)
    return 0


def _in_tree(_: argparse.Namespace) -> int:
    print(shlex.join(in_tree_options()))
    return 0


def _info(_: argparse.Namespace) -> int:
    installation = Installation.find()
    folder, condition = state()
    rows = {
        "torch": f"{version('torch')}  {installation.torch}",
        "LAMMPS": f"{version('lammps')}  {installation.lammps}",
        "mpi.h": installation.mpi_include,
        "sources": installation.source,
        "plugin": f"{folder / PLUGIN}  ({condition})",
    }
    for name, value in rows.items():
        print(f"{name:8s} {value}")
    return 0
