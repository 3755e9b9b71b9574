"""``nequip-md-evaluate``: errors of a model on labelled structures, as tables, JSON, predictions and plots."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from nequip_md.cli import command_parser, exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser("evaluate", "Errors of a model on labelled structures.")
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="checkpoint (.nqmd, .ckpt, .nequip.zip) or artifact (.pt2)"
    )
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help="structures with labels, in any format that ASE reads"
    )
    labels = parser.add_argument_group(
        "labels",
        "names in the files, as in a training file; an option given again adds a name, and the first that a frame has counts",
    )
    for kind in ("energy", "force", "stress", "virial"):
        labels.add_argument(f"--{kind}-key", action="append", metavar="NAME")
    labels.add_argument(
        "--train-file",
        type=Path,
        metavar="TRAIN.yaml",
        help="names and units of labels are those of this training file",
    )
    parser.add_argument(
        "--group-key", metavar="KEY", help="group errors by this key of Atoms.info (default: config_type)"
    )
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="number of worst frames to name (default: 5)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.extxyz", help="write the structures with predictions"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all errors as JSON, with all digits")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw predictions against labels, and force errors"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the artifact's; for checkpoints a GPU if there is one"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="frames that are evaluated at once (default: 8)"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them"
    )
    options = parser.parse_args(arguments)

    def program() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        from rich.console import Console
        from rich.progress import Progress

        from nequip_md.atomic import write_atomically
        from nequip_md.training import evaluate_model
        from nequip_md.training.evaluation.evaluate import require_folder

        if options.json is not None:
            require_folder(options.json)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("evaluating", total=None)
            result = evaluate_model(
                options.model,
                options.data,
                **{f"{kind}_key": getattr(options, f"{kind}_key") for kind in ("energy", "force", "stress", "virial")},
                train_file=options.train_file,
                group_key=options.group_key,
                worst=options.worst,
                device=options.device,
                batch_size=options.batch_size,
                output=options.output,
                plots=options.plots,
                allow_pickle=options.allow_pickle,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if options.json is not None:
            write_atomically(options.json, (json.dumps(result.as_dict(), indent=2) + "\n").encode())
        from nequip_md.training.report.tables import evaluation_tables

        console = Console(highlight=False)
        for table in evaluation_tables(result):
            console.print(table)
        for path in filter(None, (options.output, options.json, options.plots)):
            print(f"wrote {path}")

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
