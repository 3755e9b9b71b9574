"""``nequip-md-lammps``: build the LAMMPS plugin, say where it is and what it was built from."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from nequip_md.cli import command_parser, exit_status
from nequip_md.lammps.build import PLUGIN, build, built_folder, plugin_facts
from nequip_md.lammps.installation import in_tree_options


def main(arguments: Sequence[str] | None = None) -> int:
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
    options = parser.parse_args(arguments)
    programs = {"build": _build, "path": _path, "intree": _in_tree, "info": _info}
    return exit_status(lambda: programs[options.command](options))


def _build(options: argparse.Namespace) -> None:
    began = time.monotonic()
    folder = build(options.lammps, options.mpi_include, options.output, force=options.force, announce=print)
    print(f"{folder / PLUGIN} is ready ({time.monotonic() - began:.0f} s)")


def _path(_: argparse.Namespace) -> None:
    print(built_folder())


def _in_tree(_: argparse.Namespace) -> None:
    print(shlex.join(in_tree_options()))


def _info(_: argparse.Namespace) -> None:
    for name, value in plugin_facts().items():
        print(f"{name:8s} {value}")


if __name__ == "__main__":
    sys.exit(main())
