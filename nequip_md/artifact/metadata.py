"""The metadata of an artifact: a flat dictionary of strings, which C++ can read without a JSON library.

Elements of lists are separated by single spaces. Numbers are written such that they are read back exactly.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from nequip_md.artifact.artifact_file import AGAIN, ArtifactFile
from nequip_md.errors import NequIPMDError

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
    "ghosts",
    "networks",
)


def torch_version() -> str:
    """Version of the PyTorch in use, without the local build part."""
    return torch.__version__.split("+")[0]


_INSTRUCTIONS = re.compile(r"sse|ssse|avx|fma|f16c|bmi|abm|movbe|popcnt|gfni|asimd|sve|bf16|fp(?!u)")
"""Prefixes of instruction sets that a compiler uses without being asked to; it does not use AMX, for example."""


def cpu_instructions(path: str | Path = "/proc/cpuinfo") -> list[str]:
    """Instruction sets of this machine's processor that compiled code may use, by their names in Linux; empty on other systems."""
    try:
        text = Path(path).read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(name for name in set(line.group(1).split()) if _INSTRUCTIONS.match(name)) if line else []


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of an artifact, without loading its code.

    Raises:
        NequIPMDError: the file is missing, damaged or no artifact, or has another format version.
    """
    path = Path(path)
    with ArtifactFile(path) as file:
        return checked_metadata(path, file.metadata())


def checked_metadata(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    """Check the metadata of an artifact and return it.

    Raises:
        NequIPMDError: the format version or the units are others, or a key is missing or has an unusable value.
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
        "message_passing_layers": _is_count(layers),
        "ghosts": metadata["ghosts"] in ("yes", "no"),
        "networks": _is_count(metadata["networks"]) and int(metadata["networks"]) > 0,
    }
    for key, good in usable.items():
        if not good:
            raise NequIPMDError(f"{path} has the unusable metadata {key} = {metadata[key][:200]!r}; {AGAIN}")
    if (networks := int(metadata["networks"])) > 1:
        raise NequIPMDError(
            f"{path} is a committee of {networks} networks, and this nequip-md runs one: export each of them to a file of its "
            "own, with: nequip-md-export MODEL -o OUT.pt2"
        )
    return metadata


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _numbers(text: str) -> list[float]:
    """Numbers separated by white space; an empty list if one of them is not a number."""
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        return []
