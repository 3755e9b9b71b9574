"""Numbers for people: one line for each epoch, tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from nequip_md.training.evaluation.evaluate import Evaluation

_ROWS = (
    ("energy per atom", "energy", "meV/atom"),
    ("force component", "force", "meV/Å"),
    ("stress component", "stress", "meV/Å³"),
)
_EVALUATED = (
    ("energy per atom", "energy_per_atom", "meV/atom"),
    ("energy", "energy", "meV"),
    ("force component", "force", "meV/Å"),
    ("stress component", "stress", "meV/Å³"),
)
_STATISTICS = ("mae", "rmse", "max")


def epoch_line(epoch: int, values: dict[str, float]) -> str:
    """One epoch in one line: losses, validation errors (RMSE), learning rate, time."""
    shown = [
        f"{quantity} {1000 * values[f'validation/{quantity}_rmse']:.3g} {unit}"
        for _, quantity, unit in _ROWS
        if f"validation/{quantity}_rmse" in values
    ]
    return (
        f"epoch {epoch:4d}  loss: train {values['train/loss']:.4g}, validation {values['validation/loss']:.4g}"
        f"  RMSE: {', '.join(shown)}  lr {values['learning_rate']:.2e}  {values['seconds']:.0f} s"
    )


def metrics_rows(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """Data set, quantity, MAE, RMSE and unit, as text.

    Args:
        metrics: by data set, as :meth:`~nequip_md.training.evaluation.metrics.ErrorMetrics.compute` gives them.
    """
    rows = []
    for data_set, values in metrics.items():
        for name, quantity, unit in _ROWS:
            if f"{quantity}_rmse" in values:
                mae, rmse = (f"{1000 * values[f'{quantity}_{kind}']:.3f}" for kind in ("mae", "rmse"))
                rows.append((data_set, name, mae, rmse, unit))
            by_type = [values.get(f"{quantity}_{kind}_by_type", {}) for kind in ("mae", "rmse")]
            for kind in by_type[0]:
                mae, rmse = (f"{1000 * errors[kind]:.3f}" for errors in by_type)
                rows.append((data_set, f"{name}, {kind}", mae, rmse, unit))
    return rows


def metrics_table(metrics: dict[str, dict[str, Any]]) -> Table:
    """Errors of every data set that was evaluated. Args: as :func:`metrics_rows`."""
    table = _table("Errors of the best model", ("data", "quantity"), ("MAE", "RMSE"), ("unit",))
    for row in metrics_rows(metrics):
        table.add_row(*map(escape, row))
    return table


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table]:
    """Errors of all frames and by file, by element, by group, and the worst frames."""
    title = f"{evaluation.model}: {evaluation.frames} frames, {evaluation.atoms} atoms"
    table = _table(title, ("data", "quantity"), ("MAE", "RMSE", "max"), ("unit",))
    sets = {"all": evaluation.all} if len(evaluation.by_file) > 1 else {}
    for data_set, errors in (sets | evaluation.by_file).items():
        cell = escape(data_set)
        for name, quantity, unit in _EVALUATED:
            if quantity in errors:
                table.add_row(cell, name, *_milli(errors[quantity], _STATISTICS), unit)
                cell = ""
        table.add_section()
    yield table
    if evaluation.by_element:
        table = _table("Force components by element, meV/Å", ("element",), ("MAE", "RMSE", "max"))
        for name, errors in evaluation.by_element.items():
            table.add_row(escape(name), *_milli(errors, _STATISTICS))
        yield table
    if evaluation.by_group:
        shown = [row for row in _EVALUATED if row[1] in evaluation.all and row[1] != "energy"]
        headings = [f"{name}, {unit}" for name, _, unit in shown]
        table = _table(f"RMSE by {evaluation.group_key}", (evaluation.group_key,), headings)
        for name, errors in evaluation.by_group.items():
            cells = [_milli(errors[key], ("rmse",))[0] if key in errors else "" for _, key, _ in shown]
            table.add_row(escape(name or "(none)"), *cells)
        yield table
    for quantity, title in (("force", "force RMSE, meV/Å"), ("energy_per_atom", "energy error, meV/atom")):
        if frames := evaluation.worst[quantity]:
            table = _table(f"Worst frames by {title}", ("file",), ("index", "error"))
            for frame in frames:
                table.add_row(escape(frame["file"]), str(frame["index"]), f"{1000 * frame['error']:.3f}")
            yield table


def _table(title: str, left: tuple[str, ...], right: Sequence[str], last: tuple[str, ...] = ()) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for headings, justify in ((left, "left"), (right, "right"), (last, "left")):
        for heading in headings:
            table.add_column(escape(heading), justify=justify, overflow="fold")
    return table


def _milli(errors: dict[str, float], statistics: tuple[str, ...]) -> list[str]:
    return [f"{1000 * errors[name]:.3f}" for name in statistics]
