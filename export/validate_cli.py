"""``nequip-md-validate``: run every check on one artifact and print a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_md.cli import command_parser, exit_status

if TYPE_CHECKING:
    from rich.table import Table

    from nequip_md.export.validate import CheckResult


def results_table(results: Sequence[CheckResult], title: str) -> Table:
    """A table with one row for each check: its error, the largest allowed error, and whether it passed."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    table.add_column("check", overflow="fold")
    for column in ("measured", "allowed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        verdict = "[green]passed[/]" if result.passed else "[bold red]FAILED[/]"
        table.add_row(escape(result.name), f"{result.measured:.1e}", f"{result.tolerance:.1e}", verdict)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status, which is 1 if a check failed."""
    parser = command_parser(
        "validate",
        "Check a compiled potential: forces and stress against its own energy, invariances, padding, "
        "locality and smoothness. Errors are relative to the largest value of each system.",
    )
    parser.add_argument("artifact", type=Path, metavar="FILE.pt2")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="as the artifact was compiled (default: its device)")
    options = parser.parse_args(arguments)

    def program() -> int:
        from rich.console import Console

        from nequip_md.artifact import load_artifact
        from nequip_md.export import validate_artifact

        console = Console(highlight=False)
        artifact = load_artifact(options.artifact, device=options.device)
        start = time.perf_counter()
        with console.status("checking"):
            results = validate_artifact(artifact)
        facts = artifact.metadata
        title = f"{options.artifact}: {facts['kind']}, types {facts['type_names']}, {facts['precision']} on {artifact.device}"
        console.print(results_table(results, title))
        failed = sum(not result.passed for result in results)
        verdict = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
        console.print(f"{verdict}, {time.perf_counter() - start:.1f} s")
        return int(failed > 0)

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
