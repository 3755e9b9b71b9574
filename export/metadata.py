"""What an artifact says of itself: a flat table of text, readable from C++ without a JSON parser.

Lists are separated by single spaces, numbers are written so that they read back exactly.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch

import nequip_md
from nequip_md.errors import NequIPMDError
from nequip_md.export.artifact_file import AGAIN, ArtifactFile
from nequip_md.model.config import NequIPConfig, PotentialConfig
from nequip_md.model.nequip_irreps import plan_layers, width

FORMAT_VERSION = "2"
PRECISIONS = {"fp64": "float64", "fp32": "float32", "tf32": "float32"}
"""Model dtype of each precision mode."""

REQUIRED = (
    "format_version",
    "kind",
    "type_names",
    "cutoff",
    "pair_cutoffs",
    "model_dtype",
    "precision",
    "device",
    "compute_capability",
    "torch_version",
    "length_unit",
    "energy_unit",
    "message_passing_layers",
    "networks",
    "ghosts",
)


def torch_version() -> str:
    """Version of the PyTorch in use, without the local build part."""
    return torch.__version__.split("+")[0]


_INSTRUCTIONS = re.compile(r"sse|ssse|avx|fma|f16c|bmi|abm|movbe|popcnt|gfni|asimd|sve|bf16|fp(?!u)")
"""How the names of instruction sets begin that a compiler takes of its own accord (AMX, say, has to be asked for)."""


def cpu_instructions(path: str | Path = "/proc/cpuinfo") -> list[str]:
    """Instruction sets of this machine's processor that compiled code may use, in Linux' names; empty where Linux is not asked."""
    try:
        text = Path(path).read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(name for name in set(line.group(1).split()) if _INSTRUCTIONS.match(name)) if line else []


def artifact_metadata(
    *,
    kind: str,
    type_names: list[str],
    cutoff: float,
    pair_cutoffs: list[list[float]] | None = None,
    precision: str = "fp64",
    device: str = "cpu",
    message_passing_layers: int = 0,
    feature_widths: list[int] = (),
    checkpoint_sha256: str = "",
    config: dict | None = None,
    training: dict | None = None,
) -> dict[str, str]:
    """The metadata table of an artifact that is compiled here and now (architecture: docs/artifact.md).

    Args:
        pair_cutoffs: [centre type][neighbour type], angstrom; by default ``cutoff`` for every pair.

    Raises:
        NequIPMDError: an unknown precision, or a type name with white space in it.
    """
    if precision not in PRECISIONS:
        raise NequIPMDError(f"precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    for name in type_names:
        if not name or len(name.split()) != 1:
            raise NequIPMDError(f"type name {name!r} is empty or contains white space; rename the type")
    matrix = pair_cutoffs or [[cutoff] * len(type_names) for _ in type_names]
    capability = ""
    if device == "cuda":
        capability = ".".join(str(n) for n in torch.cuda.get_device_capability())
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "type_names": " ".join(type_names),
        "cutoff": repr(float(cutoff)),
        "pair_cutoffs": " ".join(repr(float(r)) for row in matrix for r in row),
        "model_dtype": PRECISIONS[precision],
        "precision": precision,
        "device": device,
        "compute_capability": capability,
        "cpu_instructions": " ".join(cpu_instructions()),
        "torch_version": torch_version(),
        "length_unit": "angstrom",
        "energy_unit": "eV",
        "message_passing_layers": str(message_passing_layers),
        "networks": "1",
        "ghosts": "no" if message_passing_layers else "yes",
        "feature_widths": " ".join(str(w) for w in feature_widths),
        "checkpoint_sha256": checkpoint_sha256,
        "nequip_md_version": nequip_md.__version__,
        "config": json.dumps(config or {}),
        "training": json.dumps(training or {}),
        **_seen_in_training(type_names, (training or {}).get("statistics") or {}),
    }


def _seen_in_training(type_names: list[str], statistics: dict) -> dict[str, str]:
    """Limits of the training data that engines may warn at, as far as the record of the training has them."""
    table = {}
    if closest := statistics.get("closest_distances"):
        distances = [closest.get(a, {}).get(b, 0.0) for a in type_names for b in type_names]
        table["closest_distances"] = " ".join(repr(float(r)) for r in distances)
    if (force := statistics.get("largest_force")) is not None:
        table["largest_force"] = repr(float(force))
    return table


def model_metadata(
    config: PotentialConfig, *, precision: str, device: str, checkpoint_sha256: str = "", training: dict | None = None
) -> dict[str, str]:
    """:func:`artifact_metadata` of one of this package's models."""
    message_passing = isinstance(config, NequIPConfig)
    matrix = config.cutoff_matrix()
    widths = [width(layer.inputs) for layer in plan_layers(config)[1:]] if message_passing else []
    return artifact_metadata(
        kind=config.kind,
        type_names=config.type_names,
        cutoff=max(max(row) for row in matrix),
        pair_cutoffs=matrix,
        precision=precision,
        device=device,
        message_passing_layers=config.num_layers if message_passing else 0,
        feature_widths=widths,
        checkpoint_sha256=checkpoint_sha256,
        config=config.model_dump(mode="json"),
        training=training,
    )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of an artifact, without loading its code.

    Raises:
        NequIPMDError: the file is missing, is not an artifact, is damaged, or was written by another format version.
    """
    path = Path(path)
    with ArtifactFile(path) as file:
        return checked_metadata(path, file.metadata())


def checked_metadata(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    """The same table, when every loader can rely on it.

    Raises:
        NequIPMDError: another format version or other units, or a key that is missing or has an unusable value.
    """
    if "format_version" not in metadata:
        raise NequIPMDError(f"{path} is not an artifact of nequip-md (it has no format_version); {AGAIN}")
    if metadata["format_version"] != FORMAT_VERSION:
        raise NequIPMDError(
            f"{path} has format version {metadata['format_version']}, this nequip-md reads {FORMAT_VERSION}; {AGAIN}"
        )
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise NequIPMDError(f"{path} lacks the metadata {', '.join(missing)}; {AGAIN}")
    types = len(metadata["type_names"].split())
    cutoff, layers = _numbers(metadata["cutoff"]), metadata["message_passing_layers"]
    radii = _numbers(metadata["pair_cutoffs"])
    usable = {
        "type_names": types > 0,
        "cutoff": len(cutoff) == 1 and 0 < cutoff[0] < math.inf,
        "pair_cutoffs": len(radii) == types**2 and all(0 < radius <= max(cutoff, default=0) for radius in radii),
        "precision": metadata["precision"] in PRECISIONS,
        "device": metadata["device"] in ("cpu", "cuda"),
        "length_unit": metadata["length_unit"] == "angstrom",
        "energy_unit": metadata["energy_unit"] == "eV",
        "message_passing_layers": layers.isascii() and layers.isdigit(),
        "networks": metadata["networks"] == "1",
        "ghosts": metadata["ghosts"] in ("yes", "no"),
    }
    for key, good in usable.items():
        if not good:
            raise NequIPMDError(f"{path} has the unusable metadata {key} = {metadata[key][:200]!r}; {AGAIN}")
    return metadata


def _numbers(text: str) -> list[float]:
    """Numbers separated by white space; none if one of them is not a number."""
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        return []
