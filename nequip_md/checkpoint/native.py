"""The native checkpoint: one safetensors file whose header holds the configuration as JSON.

The weights are the tensors of the model's ``state_dict``. The header's metadata has one entry, ``nequip_md``: a JSON
object with ``sha256``, ``format_version``, ``nequip_md_version``, ``config`` (the pydantic configuration) and ``training``
(statistics and metrics, free form). ``sha256`` is the digest of the file with zeros in the place of the digest; files of
earlier versions have none. Reading a file never executes anything that is stored in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from nequip_md import __version__
from nequip_md.atomic import write_atomically
from nequip_md.checkpoint.limits import COPY_AGAIN, AtMost, brief
from nequip_md.errors import NequIPMDError
from nequip_md.model.build import build_model
from nequip_md.model.config import AnyConfig, PotentialConfig
from nequip_md.model.potential import Potential

FORMAT_VERSION = 1
_KEY = "nequip_md"
_NO_DIGEST = 64 * "0"
_REMEDY = f"{COPY_AGAIN[:-1]}, or save the model again with nequip_md.checkpoint.save."


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        config: the model's configuration.
        training: statistics and metrics of the training, JSON-like; {} if none were saved.
        source: the program and version that wrote the file, e.g. ``nequip-md 0.1.0``.
    """

    config: PotentialConfig
    training: dict = field(default_factory=dict)
    source: str = ""


def save_native(path: str | os.PathLike, model: Potential, *, training: dict | None = None) -> None:
    """Write a model to one file, atomically: the path holds the old file or the whole new one, never a part.

    Args:
        path: usually ends with ``.nqmd``.
        model: on any device.
        training: statistics and metrics to keep beside the weights; must be JSON-like.

    Raises:
        NequIPMDError: ``training`` is not JSON-like, or the file cannot be written.
    """
    path = Path(path)
    try:
        header = json.dumps(
            {
                # first, because its place is found by its value
                "sha256": _NO_DIGEST,
                "format_version": FORMAT_VERSION,
                "nequip_md_version": __version__,
                "config": model.config.model_dump(mode="json"),
                "training": training or {},
            }
        )
    except (TypeError, ValueError) as error:
        raise NequIPMDError(f"cannot save checkpoint {path}: training must hold plain JSON values ({error})") from error
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = serialise(state, metadata={_KEY: header})
    content = content.replace(_NO_DIGEST.encode(), hashlib.sha256(content).hexdigest().encode(), 1)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise NequIPMDError(f"cannot write checkpoint {path}: {error.strerror}") from error


def read_native_info(path: Path) -> CheckpointInfo:
    """The header of a native checkpoint, without its weights.

    Raises:
        NequIPMDError: damaged file, other program's file, newer format, or a configuration that is not valid.
    """
    return _read(path, weights=False)[0]


def load_native(path: Path) -> Potential:
    """The model of a native checkpoint, in evaluation mode on the CPU.

    Raises:
        NequIPMDError: as :func:`read_native_info`, or tensors that do not fit the configuration.
    """
    info, state = _read(path, weights=True)
    return model_from_state(info.config, state, path)


def model_from_state(config: PotentialConfig, state: dict[str, Tensor], path: Path, remedy: str = _REMEDY) -> Potential:
    """Build a model and fill it with exactly the tensors that it has; ``path`` and ``remedy`` are for messages."""
    try:
        with torch.random.fork_rng(devices=[]), AtMost(sum(tensor.numel() for tensor in state.values())):
            model = build_model(config)
    except NequIPMDError as error:
        raise NequIPMDError(f"checkpoint {path}: {error}. {remedy}") from error
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} does not belong to the model" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        want, have = expected[name], state[name]
        if want.shape != have.shape:
            problems.append(f"{name} has shape {list(have.shape)}, the model needs {list(want.shape)}")
        elif want.dtype != have.dtype:
            problems.append(f"{name} is {_name(have.dtype)}, the model needs {_name(want.dtype)}")
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise NequIPMDError(f"checkpoint {path}: the weights do not fit the configuration: {shown}. {remedy}")
    model.load_state_dict(state)
    return model.eval()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read(path: Path, weights: bool) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if weights else {}
    except SafetensorError as error:
        raise NequIPMDError(f"checkpoint {path} is damaged or cut short ({error}). {_REMEDY}") from error
    if _KEY not in metadata:
        raise NequIPMDError(
            f"{path} is a safetensors file, but not a checkpoint of nequip-md: its header has no {_KEY!r} entry. "
            "Give a file written by nequip-md-train or nequip_md.checkpoint.save."
        )
    try:
        header = json.loads(metadata[_KEY])
        version = int(header["format_version"])
        training = dict(header.get("training") or {})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise NequIPMDError(f"checkpoint {path} has an unreadable header ({brief(error)}). {_REMEDY}") from error
    if not 1 <= version <= FORMAT_VERSION:
        raise NequIPMDError(
            f"checkpoint {path} has format version {version}; this nequip-md ({__version__}) reads up to version "
            f"{FORMAT_VERSION}. It was written by nequip-md {header.get('nequip_md_version', '(unknown)')}: "
            "install that version or a newer one."
        )
    if "sha256" in header:
        _check_digest(path, str(header["sha256"]))
    try:
        config = TypeAdapter(AnyConfig).validate_python(header["config"])
    except (ValidationError, KeyError) as error:
        reason = f"its configuration is not valid: {describe(error)}"
        raise NequIPMDError(f"checkpoint {path}: {reason}. {_REMEDY}") from error
    return CheckpointInfo(config, training, f"nequip-md {header.get('nequip_md_version')}"), state


def _check_digest(path: Path, digest: str) -> None:
    content = path.read_bytes().replace(digest.encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(content).hexdigest() != digest:
        raise NequIPMDError(
            f"checkpoint {path} is damaged: its content does not have the digest that was written with it. {_REMEDY}"
        )


def describe(error: ValidationError | KeyError) -> str:
    """The first complaints, each with the key that it is about."""
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    lines = [
        f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors(include_input=False)
    ]
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
