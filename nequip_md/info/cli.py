"""``nequip-md-info``: facts of a model file or of this installation, as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nequip_md.cli import command_parser, exit_status


def lines(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Facts as aligned text; a table within a table is indented."""
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and (not indent or any(isinstance(part, dict) for part in value.values())):
            yield f"{indent}{key}"
            yield from lines(value, indent + "  ")
        elif isinstance(value, list) and len(" ".join(map(str, value))) > 80:
            yield f"{indent}{key}"
            yield from (f"{indent}  {part}" for part in value)
        else:
            yield f"{indent}{key:{width}}  {_inline(value)}"


def _inline(value: Any) -> str:
    match value:
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {_inline(part)}" for key, part in value.items())
        case list():
            return " ".join(map(_inline, value))
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns its exit status."""
    parser = command_parser(
        "info",
        "What a model file holds; without a file, what is installed on this machine. "
        "Lengths in angstrom, energies in eV.",
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="compiled model (.pt2), checkpoint (.nqmd, .ckpt, .nequip.zip, nequip.net:GROUP/MODEL:VERSION), state of a run (last.ckpt), store of graphs (.graphs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all digits")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them"
    )
    options = parser.parse_args(arguments)

    def program() -> None:
        if options.model is None:
            from nequip_md.info import installation_facts

            facts = installation_facts()
        elif options.model.suffix == ".graphs":
            from nequip_md.training.data.store import store_facts  # imports PyTorch and lmdb

            facts = store_facts(options.model)
        else:
            from nequip_md.info import model_facts

            facts = model_facts(options.model, allow_pickle=options.allow_pickle)
        print(json.dumps(facts, indent=2) if options.json else "\n".join(lines(facts)))

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
