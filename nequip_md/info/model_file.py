"""Facts that a compiled model, a checkpoint or the state of a training run records about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nequip_md.errors import NequIPMDError
from nequip_md.files import CHECKPOINTS, TRAINING_STATE_KEY, FileKind, file_kind
from nequip_md.model.config import AnyConfig, PotentialConfig
from nequip_md.public_models import local_file
from nequip_md.verified_zip import verified_copy


def model_facts(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Facts of a file by name, JSON-like; lengths in angstrom, energies in eV. What the file does not tell is left out.

    No machine code of an artifact is loaded.

    Args:
        allow_pickle: as for :func:`nequip_md.load_checkpoint`.

    Raises:
        NequIPMDError: the file is missing, is damaged, or holds no model.
    """
    path = local_file(path)
    if not path.exists():
        raise NequIPMDError(f"{path}: no such file; check the path")
    kind = file_kind(path)
    if kind in CHECKPOINTS:
        facts = _checkpoint_facts(path, allow_pickle)
    elif kind is FileKind.ARTIFACT:
        facts = _artifact_facts(path)
    elif kind is FileKind.TRAINING_STATE:
        facts = _state_facts(path)
    else:
        raise NequIPMDError(
            f"{path} is {kind}; give a compiled model (.pt2), or a checkpoint of nequip-md or upstream's nequip"
        )
    facts = {"file": str(path), "kind": str(kind), "size_MB": round(path.stat().st_size / 1e6, 3), **facts}
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}


def _checkpoint_facts(path: Path, allow_pickle: bool) -> dict[str, Any]:
    from nequip_md.checkpoint import checkpoint_sha256, load, read_info

    info = read_info(path, allow_pickle=allow_pickle)
    model = load(path, allow_pickle=allow_pickle)
    return {
        "written_by": info.source,
        "checkpoint_sha256": checkpoint_sha256(path),
        **_config_facts(info.config, _count(model)),
        **_training_facts(info.training),
    }


def _artifact_facts(path: Path) -> dict[str, Any]:
    from nequip_md.artifact import read_metadata
    from nequip_md.model import build_model

    table = read_metadata(path)
    try:
        config = TypeAdapter(AnyConfig).validate_json(table.get("config", ""))
        facts = _config_facts(config, _count(build_model(config)))
    except ValidationError:  # compiled from something else than this package's models
        names = table["type_names"].split()
        radii = [float(r) for r in table["pair_cutoffs"].split()]
        rows = [radii[k * len(names) : (k + 1) * len(names)] for k in range(len(names))]
        facts = {"model": table["kind"], **_types(names, float(table["cutoff"]), rows)}
    shown = (
        "precision",
        "device",
        "compute_capability",
        "torch_version",
        "kernels",
        "cpu_instructions",
        "checkpoint_sha256",
    )
    return {
        "written_by": f"nequip-md {table.get('nequip_md_version', '')}".strip(),
        **{key: table.get(key) for key in shown},
        **facts,
        **_left_out(table),
        **_training_facts(json.loads(table.get("training") or "{}")),
    }


def _left_out(table: dict[str, str]) -> dict[str, str]:
    """Numbers of types of an artifact and of its checkpoint; empty if the artifact has them all."""
    kept, every = table["type_names"].split(), table.get("checkpoint_type_names", "").split()
    return {"types_kept": f"{len(kept)} of the {len(every)} types of the checkpoint"} if every else {}


def _state_facts(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(verified_copy(path), map_location="cpu", weights_only=True)
        state, config = content[TRAINING_STATE_KEY], None
        config = TypeAdapter(AnyConfig).validate_python(state["record"]["potential"])
        complete = content["epoch"] + (state.get("batches", 0) == 0)  # or it was saved within an epoch
        record = {**state["record"], "epoch": complete, "seconds": state.get("elapsed")}
    # a damaged pickle can raise nearly anything
    except Exception as error:
        raise NequIPMDError(
            f"{path} is damaged, or of another version of nequip-md ({type(error).__name__}: {error}); "
            "take the best.nqmd of that run"
        ) from error
    return {**_config_facts(config), **_training_facts(record)}


def _count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def _config_facts(config: PotentialConfig, parameters: int | None = None) -> dict[str, Any]:
    options = config.model_dump(mode="json", exclude={"kind", "type_names", "cutoff", "pair_cutoffs", "dtype"})
    return {
        "model": config.kind,
        "parameters": parameters,
        "dtype": config.dtype,
        **_types(config.type_names, config.cutoff, config.cutoff_matrix()),
        "hyperparameters": options,
    }


def _types(names: list[str], cutoff: float, matrix: list[list[float]]) -> dict[str, Any]:
    """Types and cutoffs; those of pairs [centre][neighbour] only where they differ."""
    differ = len({radius for row in matrix for radius in row}) > 1
    pairs = {centre: dict(zip(names, row)) for centre, row in zip(names, matrix)}
    return {"type_names": names, "cutoff": cutoff, "pair_cutoffs": pairs if differ else None}


def _training_facts(record: dict[str, Any]) -> dict[str, Any]:
    # the configuration is shown once
    return {"training": {key: value for key, value in record.items() if key != "potential"}}
