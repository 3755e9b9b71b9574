"""``nequip-md``: one command for all of this package's programs, also as ``python -m nequip_md``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from nequip_md.cli import add_version

COMMANDS = {
    "data": ("nequip_md.training.data.cli", "convert, check, describe and split data files"),
    "train": ("nequip_md.training.cli", "train an Allegro or NequIP potential"),
    "evaluate": ("nequip_md.training.evaluation.cli", "errors of a model on labelled structures"),
    "export": ("nequip_md.export.cli", "compile a trained potential into one .pt2 file"),
    "validate": ("nequip_md.export.validate_cli", "check a compiled potential"),
    "lammps": ("nequip_md.lammps.cli", "build and find the LAMMPS plugin"),
    "bench": ("nequip_md.bench.cli", "time a step of a model on this machine"),
    "info": ("nequip_md.info.cli", "what a model file holds; without a file, what is installed here"),
}
"""Module and help of each command; the module's ``main()`` reads ``sys.argv`` and returns the exit status."""


def main() -> int:
    """Hand over to the command that is named, or explain which there are; returns the exit status."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        name = sys.argv[1]
        sys.argv = [f"nequip-md {name}", *sys.argv[2:]]
        return import_module(COMMANDS[name][0]).main()
    parser = argparse.ArgumentParser(
        prog="nequip-md",
        description="Trained NequIP and Allegro potentials in molecular dynamics.",
        epilog="nequip-md COMMAND --help explains a command; each is also installed as nequip-md-COMMAND",
    )
    add_version(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, explanation) in COMMANDS.items():
        commands.add_parser(name, help=explanation)
    parser.parse_args()
    return 0


if __name__ == "__main__":
    sys.exit(main())
