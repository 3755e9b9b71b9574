"""Pictures of a training run and of a model's errors, drawn by matplotlib without a display.

The colours are those of Okabe and Ito and the map cividis, which people with colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nequip_md.atomic import replacing
from nequip_md.training.evaluation.error_groups import force_errors_by_size, force_errors_by_type
from nequip_md.training.evaluation.predictions import Predictions

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
}
DPI = 150
_MANY_POINTS = 5000
"""More points than this are drawn by their density."""

_RMSE_PANELS = (
    ("energy", "energy RMSE, meV/atom"),
    ("force", "force RMSE, meV/Å"),
    ("stress", "stress RMSE, meV/Å³"),
)


def learning_curves(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw loss, root mean square errors and learning rate against the epoch.

    Args:
        columns: of ``metrics.csv``, by name, with ``epoch`` counted from 0.
        path: the PNG file to write.
    """
    epoch = np.asarray(columns["epoch"]) + 1
    shown = [(f"{key}_rmse", label, 1e3) for key, label in _RMSE_PANELS if f"validation/{key}_rmse" in columns]
    panels = [("loss", "loss", 1.0), *shown]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(panels) + 1, columns=3 if len(panels) > 3 else 2)
        for axis, (name, label, scale) in zip(axes, panels):
            for role, colour, style in (("train", ORANGE, "--"), ("validation", BLUE, "-")):
                if f"{role}/{name}" in columns:
                    values = scale * columns[f"{role}/{name}"]
                    axis.plot(epoch, values, style, color=colour, label=_ROLES[role], **_dots(epoch))
            axis.set_ylabel(label)
        axes[0].legend()
        axes[-1].plot(epoch, columns["learning_rate"], color=GREEN, **_dots(epoch))
        axes[-1].set_ylabel("learning rate")
        for axis in axes:
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_yscale("log")
        for axis in axes[:-1]:
            _readable_log(axis.yaxis)
        _write(figure, path)


_ROLES = {"train": "training", "validation": "validation"}


def _dots(epoch: np.ndarray) -> dict:
    """Markers where there are few epochs: a line through one point cannot be seen."""
    return {"marker": "o", "markersize": 3} if len(epoch) <= 30 else {}


def parity(predictions: Predictions, path: Path) -> None:
    """Draw predicted against labelled energies per atom, force components and stress components.

    Energies are shown less a fit of the labels by composition, beside which their differences would not be seen.

    Args:
        path: the PNG file to write.
    """
    energy, energy_label = _reduced_energies(predictions)
    panels = [
        ("energy per atom, less fit by composition", "eV/atom", energy_label, energy),
        ("force component", "eV/Å", predictions.force_label, predictions.forces),
        ("stress component", "eV/Å³", predictions.stress_label, predictions.stress),
    ]
    panels = [(*head, label[~np.isnan(label)], value[~np.isnan(label)]) for *head, label, value in panels]
    panels = [panel for panel in panels if panel[-1].size]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(panels), columns=3, width=3.6, height=3.6)
        for axis, (name, unit, label, value) in zip(axes, panels):
            _parity_panel(figure, axis, name, unit, label, value)
        _write(figure, path)


def _reduced_energies(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and labelled energy per atom, less a least-squares fit of the labels by composition, eV [F] each."""
    known = np.isfinite(predictions.energy_label)
    composition = predictions.composition().astype(float)
    fit = np.zeros(predictions.num_frames)
    if known.any():
        fit = composition @ np.linalg.lstsq(composition[known], predictions.energy_label[known], rcond=None)[0]
    return tuple((e - fit) / predictions.num_atoms for e in (predictions.energy, predictions.energy_label))


def _parity_panel(figure: Figure, axis: Axes, name: str, unit: str, label: np.ndarray, value: np.ndarray) -> None:
    rmse = 1e3 * np.sqrt(np.mean((value - label) ** 2))
    axis.set_title(f"{name}\nRMSE {rmse:.3g} m{unit}")
    if max(np.abs(label).max(), np.abs(value).max()) < 0.5:
        unit, label, value = f"m{unit}", 1e3 * label, 1e3 * value
    low, high = min(label.min(), value.min()), max(label.max(), value.max())
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.04
    limits = (low - margin, high + margin)
    many = label.size > _MANY_POINTS
    if many:
        extent = (*limits, *limits)
        bins = axis.hexbin(
            label, value, gridsize=70, extent=extent, cmap="cividis", norm=LogNorm(), mincnt=1, linewidths=0.1
        )
        figure.colorbar(bins, cax=axis.inset_axes((1.03, 0, 0.045, 1)), label="number of values")
    else:
        axis.plot(label, value, "o", markersize=3.5, color=BLUE, alpha=0.6, markeredgewidth=0)
    axis.plot(limits, limits, color=GREY, linewidth=0.8, zorder=3 if many else 1.5)
    axis.set(xlabel=f"label, {unit}", ylabel=f"prediction, {unit}", xlim=limits, ylim=limits, aspect="equal")
    for part in (axis.xaxis, axis.yaxis):
        part.set_major_locator(MaxNLocator(5))


def force_errors(predictions: Predictions, path: Path) -> None:
    """Draw errors of the force components by element, and by the size of the labelled force.

    Args:
        path: the PNG file to write.
    """
    by_type, by_size = force_errors_by_type(predictions), force_errors_by_size(predictions)
    with matplotlib.rc_context(_STYLE):
        figure, (left, right) = _panels(2, columns=2, width=4.4, height=3.2)
        place = np.arange(len(by_type))
        for shift, (key, label, colour) in zip((-0.2, 0.2), (("mae", "MAE", ORANGE), ("rmse", "RMSE", BLUE))):
            left.bar(place + shift, [1e3 * v[key] for v in by_type.values()], 0.4, color=colour, label=label)
        left.set(xlabel="element", ylabel="force error, meV/Å")
        left.set_xticks(place, list(by_type))
        left.grid(axis="x", visible=False)
        left.margins(y=0.2)
        left.legend(ncols=2, loc="upper right")
        if by_size:
            edges = np.array([by_size[0]["from"], *(row["to"] for row in by_size)])
            # the first interval begins at 0, which has no place on a logarithmic axis
            edges[0] = edges[0] or edges[1] / 2.5
            for key, label, colour, style in (("rmse", "RMSE", BLUE, "-"), ("mae", "MAE", ORANGE, "--")):
                values = [1e3 * row[key] for row in by_size]
                right.stairs(values, edges, baseline=None, color=colour, linestyle=style, linewidth=1.6, label=label)
            right.plot(edges, 100 * edges, ":", color=GREY, linewidth=1.2, label="10 % of the force")
            right.set(xscale="log", yscale="log", xlim=(edges[0], edges[-1]))
            values = [1e3 * row[key] for row in by_size for key in ("rmse", "mae") if row[key] > 0]
            if values:
                right.set_ylim(min(values) / 2, max(values) * 4)
            for part in (right.xaxis, right.yaxis):
                _readable_log(part)
            right.legend(loc="upper left")
        right.set(xlabel="norm of the labelled force, eV/Å", ylabel="force error, meV/Å")
        _write(figure, path)


def draw_predictions(predictions: Predictions, folder: Path, suffix: str = "") -> list[Path]:
    """Draw ``parity.png`` and, where there are forces, ``force_errors.png`` in a folder, which is made if need be.

    Args:
        suffix: of the names, before ``.png``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    labels = (predictions.energy_label, predictions.force_label, predictions.stress_label)
    if any(np.isfinite(label).any() for label in labels):
        parity(predictions, folder / f"parity{suffix}.png")
        drawn.append(folder / f"parity{suffix}.png")
    if np.isfinite(predictions.force_label).any():
        force_errors(predictions, folder / f"force_errors{suffix}.png")
        drawn.append(folder / f"force_errors{suffix}.png")
    return drawn


def _panels(count: int, *, columns: int, width: float = 3.5, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of a size in inches, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    # no pyplot: it would choose a backend for the whole process and keep every figure
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(count)]


def _readable_log(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, and with 2 and 5 too where it spans less than two decades."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    if decades < 5:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")
