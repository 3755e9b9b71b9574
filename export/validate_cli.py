"""``nequip-md-validate``: every check on one artifact, as a table."""

from __future__ import annotations

import time
from pathlib import Path

from nequip_md.cli import command_parser, run


def validate(path: Path, device: str | None = None) -> int:
    """Print the table of checks; the status is 1 if one of them failed.

    Raises:
        NequIPMDError: the file cannot be loaded here.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nequip_md.artifact import load_artifact
    from nequip_md.export.validate import validate_artifact

    console = Console(highlight=False)
    artifact = load_artifact(path, device=device)
    facts = artifact.metadata
    start = time.perf_counter()
    with console.status("checking"):
        results = validate_artifact(artifact)
    title = f"{path}: {facts['kind']}, types {facts['type_names']}, {facts['precision']} on {artifact.device}"
    table = Table(title=escape(title))
    table.add_column("check", overflow="fold")
    for column in ("measured", "allowed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        verdict = "[green]passed[/]" if result.passed else "[bold red]FAILED[/]"
        table.add_row(escape(result.name), f"{result.measured:.1e}", f"{result.tolerance:.1e}", verdict)
    console.print(table)
    failed = sum(not result.passed for result in results)
    verdict = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    console.print(f"{verdict}, {time.perf_counter() - start:.1f} s")
    return int(failed > 0)


def main() -> None:
    parser = command_parser(
        "validate",
        "Check a compiled potential: forces and stress against its own energy, invariances, padding, "
        "locality and smoothness. Errors are relative to the largest value of each system.",
    )
    parser.add_argument("artifact", type=Path, metavar="FILE.pt2")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="as the artifact was compiled (default: its device)")
    arguments = parser.parse_args()
    run(lambda: validate(arguments.artifact, arguments.device))


if __name__ == "__main__":
    main()
