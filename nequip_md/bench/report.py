"""Results for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nequip_md.bench.measure import Row
from nequip_md.errors import NequIPMDError

_NUMBERS = (
    ("edges\n/atom", "edges_per_atom", ".1f"),
    ("ms\n/step", "ms_per_step", ".3f"),
    ("µs/atom\n/step", "us_per_atom_step", ".2f"),
    ("steps\n/s", "steps_per_s", ".2f"),
    ("memory\nGiB", "memory_gib", ".3f"),
)


def results_table(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("engine", "who", "precision"):
        table.add_column(heading)
    for heading in ("atoms", *(heading for heading, _, _ in _NUMBERS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = [getattr(row, name) for _, name, _ in _NUMBERS]
        cells = ["–" if value is None else format(value, form) for value, (_, _, form) in zip(values, _NUMBERS)]
        if row.error:  # the whole text stands in the JSON file
            cells[1] = "[red]failed[/]" if len(row.error) > 20 else f"[red]{escape(row.error)}[/]"
        table.add_row(row.engine, row.who, row.precision, f"{row.atoms:,}", *cells)
    return table


def write_json(path: Path, rows: Sequence[Row], facts: dict) -> None:
    """``facts`` (model, machine, date, command ...) and the rows, units in their names."""
    path.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def check_files(output: Path | None, picture: Path | None) -> None:
    """Refuse files that could not be written, before anything slow happens.

    Raises:
        NequIPMDError: a folder that does not exist, no matplotlib, or a kind of picture that it cannot draw.
    """
    for path in filter(None, (output, picture)):
        if not path.parent.is_dir():
            raise NequIPMDError(f"the folder {path.parent} does not exist; create it first")
    if picture:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise NequIPMDError(f"--plot needs matplotlib ({error}); pip install matplotlib") from error
        if picture.suffix[1:] not in Figure().canvas.get_supported_filetypes():
            raise NequIPMDError(f"matplotlib cannot draw {picture.name!r}; give a name that ends in .png")


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Time for each atom over the number of atoms; memory beside it, where it was measured."""
    from matplotlib.figure import Figure

    panels = [("us_per_atom_step", "µs/atom/step")]
    panels += [("memory_gib", "peak memory, GiB")] * any(row.memory_gib is not None for row in rows)
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for key in dict.fromkeys((row.engine, row.who, row.precision) for row in rows):
            mine = [
                row for row in rows if (row.engine, row.who, row.precision) == key and getattr(row, name) is not None
            ]
            if mine:
                axes.plot([row.atoms for row in mine], [getattr(row, name) for row in mine], "o-", label=", ".join(key))
        axes.set(xscale="log", xlabel="atoms", ylabel=label)
        if name == "memory_gib":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
