"""``report.html``: what a training run did and how good its model is, in one file that needs no network."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml

from nequip_md import __version__
from nequip_md.atomic import write_atomically
from nequip_md.info.installation import cpu_name
from nequip_md.training.config import TrainingConfig
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.evaluation.predictions import Predictions
from nequip_md.training.folder import PLOTS, REPORT_PAGE
from nequip_md.training.report.history import read_history
from nequip_md.training.report.plots import DPI, draw_predictions, learning_curves
from nequip_md.training.report.tables import metrics_rows
from nequip_md.training.step_config import QUANTITIES

_TEMPLATE = Path(__file__).with_name("template.html")
_PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "ase", "e3nn")

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file in the page.

    Attributes:
        text: what it shows.
        width: in pixels of the page, so that the text of all pictures has one size.
        content: its bytes in base 64.
    """

    text: str
    width: int
    content: str

    @classmethod
    def read(cls, path: Path) -> Picture:
        content = path.read_bytes()
        pixels = int.from_bytes(content[16:20], "big")  # of the header of a PNG file
        return cls(path.stem.replace("_", " "), pixels * 96 // DPI, base64.b64encode(content).decode())


def write_report_page(
    output: Path,
    record: Mapping[str, Any],
    data: AtomsData,
    config: TrainingConfig,
    predictions: Mapping[str, Predictions],
    device: torch.device,
) -> Path:
    """Draw the pictures of a run to ``plots/`` and write ``report.html`` with all of them in it.

    Args:
        output: folder of the run.
        record: content of ``report.json``.
        predictions: of the best model, by data set.
        device: where the model was trained.

    Returns:
        The page.
    """
    plots = output / PLOTS
    plots.mkdir(exist_ok=True)
    history = read_history(output)
    curves = []
    if history:
        learning_curves(history, plots / "learning_curves.png")
        curves.append(Picture.read(plots / "learning_curves.png"))
    pictures = [
        (name, [Picture.read(path) for path in draw_predictions(found, plots, f"_{name}")])
        for name, found in predictions.items()
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    text = page.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Training of {output.resolve().name}",
        summary=_summary(record),
        errors=metrics_rows(record["metrics"]),
        training=_training_facts(history, record, data),
        curves=curves,
        predictions=pictures,
        labels=[(c.role, c.frames, c.energy, c.forces, c.stress, c.isolated_atoms, c.path) for c in data.counts],
        sets=[(name, len(getattr(data, name))) for name in ("train", "validation", "test")],
        statistics=_statistics_facts(record["statistics"]),
        types=_type_rows(record["statistics"], record["potential"]),
        environment=_environment_facts(device),
        configuration=_yaml(config.model_dump(mode="json")),
        model=_yaml(record["potential"]),
    )
    write_atomically(output / REPORT_PAGE, text.encode())
    return output / REPORT_PAGE


def _summary(record: Mapping[str, Any]) -> str:
    potential = record["potential"]
    return (
        f"{potential['kind']} model, types {', '.join(potential['type_names'])}, cutoff {potential['cutoff']:g} Å,"
        f" {potential['dtype']}; best after epoch {record['epoch']}"
    )


def _training_facts(history: Mapping[str, np.ndarray], record: Mapping[str, Any], data: AtomsData) -> Facts:
    facts = [("epoch of the best model", str(record["epoch"]))]
    if history:
        seconds = history["seconds"]
        per_epoch = np.diff(seconds, prepend=0.0) if history["epoch"][0] == 0 else np.diff(seconds)
        facts = [("epochs", str(int(history["epoch"][-1]) + 1)), *facts, ("time", f"{seconds[-1]:.0f} s")]
        if per_epoch.size:
            typical = float(np.median(per_epoch))
            atoms = sum(record["statistics"]["num_atoms"].values())
            facts.append(("time for an epoch (median)", f"{typical:.3g} s, validation included"))
            facts.append(("atoms trained on in a second", f"{atoms / typical:,.0f}" if typical > 0 else ""))
    loss = record["loss"]
    weights = ", ".join(f"{key} {loss[key]:g}" for key in QUANTITIES)
    for change in loss.get("schedule", []):
        parts = (f"{key} {change[key]:g}" for key in QUANTITIES if change[key] is not None)
        weights += f"; from epoch {change['epoch']} on {', '.join(parts)}"
    kind = loss["kind"] + (f", delta {loss['huber_delta']:g}" if "huber" in loss["kind"] else "")
    return [*facts, ("weights of the loss", weights), ("kind of the loss", kind)]


def _statistics_facts(statistics: Mapping[str, Any]) -> Facts:
    def number(key: str, unit: str, scale: float = 1.0) -> str:
        value = statistics.get(key)
        return "none" if value is None else f"{scale * value:.4g} {unit}".strip()

    return [
        ("frames", str(statistics["num_frames"])),
        ("atoms", f"{sum(statistics['num_atoms'].values()):,}"),
        ("neighbours of an atom", number("avg_num_neighbors", "")),
        ("RMS of force components", number("force_rms", "eV/Å")),
        ("largest force", number("largest_force", "eV/Å")),
        ("RMS of energies per atom less fit by composition", number("energy_rms", "meV", 1e3)),
    ]


def _type_rows(statistics: Mapping[str, Any], potential: Mapping[str, Any]) -> list[tuple[str, ...]]:
    shifts = potential["energy_shifts"]
    rows = []
    for name in potential["type_names"]:
        contacts = statistics["closest_distances"].get(name, {})
        values = (
            (statistics["avg_num_neighbors_by_type"] or {}).get(name),
            (statistics["force_rms_by_type"] or {}).get(name),
            shifts.get(name) if isinstance(shifts, dict) else shifts,
        )
        numbers = ["" if value is None else f"{value:.6g}" for value in values]
        closest = ", ".join(f"{other} {distance:.3f}" for other, distance in contacts.items())
        rows.append((name, f"{statistics['num_atoms'].get(name, 0):,}", *numbers, closest))
    return rows


def _environment_facts(device: torch.device) -> Facts:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name() or platform.machine()
    facts = [
        ("device", f"{device.type}: {name}"),
        ("threads", str(torch.get_num_threads())),
        ("nequip-md", __version__),
        ("Python", platform.python_version()),
        *((package, metadata.version(package)) for package in _PACKAGES),
    ]
    if torch.version.cuda is not None:
        facts.append(("CUDA of PyTorch", torch.version.cuda))
    return [*facts, ("system", platform.platform())]


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
