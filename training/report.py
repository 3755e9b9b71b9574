"""Numbers for people: one line for each epoch, one table at the end."""

from __future__ import annotations

from rich.table import Table

_ROWS = (
    ("energy per atom", "energy", "meV/atom"),
    ("force component", "force", "meV/Å"),
    ("stress component", "stress", "meV/Å³"),
)


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


def metrics_table(metrics: dict[str, dict[str, float]]) -> Table:
    """Errors of every data set that was evaluated.

    Args:
        metrics: by data set, as :meth:`~nequip_md.training.metrics.ErrorMetrics.compute` gives them.
    """
    table = Table(title="Errors of the best model")
    for heading in ("data", "quantity", "MAE", "RMSE", "unit"):
        table.add_column(heading, justify="right" if heading in ("MAE", "RMSE") else "left")
    for data_set, values in metrics.items():
        for name, quantity, unit in _ROWS:
            if f"{quantity}_rmse" in values:
                mae, rmse = (f"{1000 * values[f'{quantity}_{kind}']:.3f}" for kind in ("mae", "rmse"))
                table.add_row(data_set, name, mae, rmse, unit)
    return table
