"""Errors of predictions, over all frames and by groups of frames and atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nequip_md.training.evaluation.predictions import Predictions

Errors = dict[str, dict[str, float]]
"""``count``, ``mae``, ``rmse`` and ``max`` by quantity: ``energy_per_atom`` (eV), ``energy`` (eV), ``force`` (components,
eV/angstrom), ``stress`` (components, eV/angstrom^3). A quantity without a label is left out."""


def statistics_of(differences: np.ndarray) -> dict[str, float] | None:
    """``count``, ``mae``, ``rmse`` and ``max`` of the differences that are numbers; None if there are none."""
    values = np.abs(differences[~np.isnan(differences)])
    if values.size == 0:
        return None
    return {
        "count": int(values.size),
        "mae": float(values.mean()),
        "rmse": float(np.sqrt(np.mean(values**2))),
        "max": float(values.max()),
    }


def group_errors(predictions: Predictions, frames: np.ndarray | None = None) -> Errors:
    """Errors of all frames, or of some.

    Args:
        frames: which frames count, bool [F].
    """
    frames = np.ones(predictions.num_frames, dtype=bool) if frames is None else frames
    atoms = frames[predictions.frame_of_atom]
    energy = (predictions.energy - predictions.energy_label)[frames]
    differences = {
        "energy_per_atom": energy / predictions.num_atoms[frames],
        "energy": energy,
        "force": (predictions.forces - predictions.force_label)[atoms],
        "stress": (predictions.stress - predictions.stress_label)[frames],
    }
    found = {name: statistics_of(values) for name, values in differences.items()}
    return {name: values for name, values in found.items() if values is not None}


def errors_by_label(predictions: Predictions, labels: Sequence[str]) -> dict[str, Errors]:
    """Errors of the frames that share a label (a file, a ``config_type``), in the order in which the labels come.

    Args:
        labels: one for each frame.
    """
    labels = np.array(labels, dtype=object)
    return {name: group_errors(predictions, labels == name) for name in dict.fromkeys(labels)}


def force_errors_by_type(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Errors of the force components on the atoms of each model type; types without any label are left out."""
    differences = predictions.forces - predictions.force_label
    found = {name: statistics_of(differences[predictions.types == k]) for k, name in enumerate(predictions.type_names)}
    return {name: values for name, values in found.items() if values is not None}


def force_errors_by_size(predictions: Predictions) -> list[dict[str, Any]]:
    """Errors of the force components by the norm of the labelled force on the atom.

    Returns:
        One entry for each interval of the series 1, 2, 5, 10 ... that holds an atom, ascending: ``from`` and ``to`` in
        eV/angstrom, and what :func:`statistics_of` gives.
    """
    sizes = np.linalg.norm(predictions.force_label, axis=1)
    known = np.isfinite(sizes)
    if not known.any():
        return []
    sizes, differences = sizes[known], (predictions.forces - predictions.force_label)[known]
    edges = _series(sizes)
    interval = np.searchsorted(edges, sizes, side="right") - 1
    return [
        {"from": float(edges[k]), "to": float(edges[k + 1]), **statistics_of(differences[interval == k])}
        for k in np.unique(interval)
    ]


def _series(sizes: np.ndarray) -> np.ndarray:
    """Limits 0, then the series 1, 2, 5, 10 ... from about the smallest percent of the sizes to beyond the largest."""
    largest = max(float(sizes.max()), 1e-12)
    smallest = max(float(np.quantile(sizes, 0.01)), 1e-4 * largest)
    decades = range(int(np.floor(np.log10(smallest))), int(np.ceil(np.log10(largest))) + 1)
    series = np.array([float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)])
    last = int(np.searchsorted(series, largest, side="right"))
    first = max(int(np.searchsorted(series, smallest, side="right")) - 1, 0)
    return np.concatenate([[0.0], series[first : last + 1]])


def worst_frames(predictions: Predictions, count: int) -> dict[str, list[tuple[int, float]]]:
    """Frames with the largest errors, worst first.

    Returns:
        Index of the frame and its error, by ``force`` (root mean square error of the components, eV/angstrom) and
        ``energy_per_atom`` (absolute error, eV).
    """
    squares = np.square(predictions.forces - predictions.force_label).mean(axis=1)
    known = np.isfinite(squares)
    frame = predictions.frame_of_atom[known]
    labelled = np.bincount(frame, minlength=predictions.num_frames)
    sums = np.bincount(frame, weights=squares[known], minlength=predictions.num_frames)
    with np.errstate(invalid="ignore"):  # 0 / 0 for frames without forces is NaN, and they are left out
        force = np.sqrt(sums / labelled)
    energy = np.abs(predictions.energy - predictions.energy_label) / predictions.num_atoms
    return {"force": _largest(force, count), "energy_per_atom": _largest(energy, count)}


def _largest(values: np.ndarray, count: int) -> list[tuple[int, float]]:
    order = np.argsort(-values, kind="stable")  # NaN comes last
    return [(int(k), float(values[k])) for k in order[:count] if not np.isnan(values[k])]
