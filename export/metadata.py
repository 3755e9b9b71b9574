"""The metadata that an artifact gets when it is compiled; :mod:`nequip_md.artifact.metadata` reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

import nequip_md
from nequip_md.artifact.metadata import FORMAT_VERSION, PRECISIONS, cpu_instructions, torch_version
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import NequIPConfig, PotentialConfig
from nequip_md.model.nequip_irreps import plan_layers, width


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
    checkpoint_type_names: Sequence[str] = (),
) -> dict[str, str]:
    """The metadata of an artifact that this process compiles (docs/artifact.md lists the keys).

    Args:
        checkpoint_type_names: types of the checkpoint, where ``type_names`` are some of them.
        pair_cutoffs: ``[centre type][neighbour type]``, angstrom; by default ``cutoff`` for every pair.

    Raises:
        NequIPMDError: the precision is unknown, or a type name has white space in it.
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
    left_out = len(checkpoint_type_names) > len(type_names)
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
        "ghosts": "yes",
        "networks": "1",
        "feature_widths": " ".join(str(w) for w in feature_widths),
        "checkpoint_sha256": checkpoint_sha256,
        "nequip_md_version": nequip_md.__version__,
        "config": json.dumps(config or {}),
        "training": json.dumps(training or {}),
        **({"checkpoint_type_names": " ".join(checkpoint_type_names)} if left_out else {}),
        **_seen_in_training(type_names, (training or {}).get("statistics") or {}),
    }


def _seen_in_training(type_names: list[str], statistics: dict) -> dict[str, str]:
    """Extremes of the training data beyond which engines may warn, as far as the record of the training has them."""
    table = {}
    if closest := statistics.get("closest_distances"):
        distances = [closest.get(a, {}).get(b, 0.0) for a in type_names for b in type_names]
        table["closest_distances"] = " ".join(repr(float(r)) for r in distances)
    if (force := statistics.get("largest_force")) is not None:
        table["largest_force"] = repr(float(force))
    return table


def model_metadata(
    config: PotentialConfig,
    *,
    precision: str,
    device: str,
    checkpoint_sha256: str = "",
    training: dict | None = None,
    checkpoint_type_names: Sequence[str] = (),
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
        checkpoint_type_names=checkpoint_type_names,
    )
