"""``nequip-md-export``: export a checkpoint to one compiled, checked ``.pt2`` artifact."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nequip_md.cli import command_parser, exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser(
        "export", "Compile a trained potential into one .pt2 file for LAMMPS, ASE and other engines."
    )
    parser.add_argument(
        "model",
        type=Path,
        help="native checkpoint (.nqmd), upstream .ckpt or .nequip.zip, or nequip.net:GROUP/MODEL:VERSION",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.pt2", help="the artifact to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it will run (default: cpu)")
    parser.add_argument(
        "--precision",
        choices=("fp64", "fp32", "tf32"),
        default="fp32",
        help="arithmetic of the network; distances and energies are float64 always (default: fp32)",
    )
    parser.add_argument(
        "--types",
        nargs="+",
        metavar="TYPE",
        help="keep these types of the model alone, for structures that have no others (default: all)",
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them"
    )
    options = parser.parse_args(arguments)

    def program() -> None:
        from rich.console import Console

        from nequip_md.export import export_checkpoint
        from nequip_md.public_models import local_file

        checkpoint = local_file(options.model)  # first, since a download shows its own progress
        console = Console(highlight=False)
        with console.status("exporting (compilation takes most of a minute)"):
            export_checkpoint(
                checkpoint,
                options.output,
                device=options.device,
                precision=options.precision,
                types=options.types,
                allow_pickle=options.allow_pickle,
                report=lambda line: console.print(line, soft_wrap=True, markup=False),
            )

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
