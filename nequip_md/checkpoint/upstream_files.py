"""The two kinds of file that upstream writes: Lightning checkpoints and packaged models."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from nequip_md.checkpoint.inert_pickle import read_module_state
from nequip_md.checkpoint.limits import COPY_AGAIN, brief, check_size, plain_data
from nequip_md.errors import NequIPMDError
from nequip_md.verified_zip import verified_copy

MODEL_NAME = "sole_model"  # upstream's name for the model of a run that trains just one
_MEGABYTE = 1_000_000


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (``<<``) copy what they name, and so multiply it; upstream writes none."""


@dataclass(frozen=True)
class UpstreamFile:
    """Content of an upstream file, not yet interpreted.

    Attributes:
        path: the file.
        model_config: the ``model`` section of its configuration.
        state: tensors of the network; keys start at its own modules.
        ema_weights: averaged parameters in the order of upstream's ``Module.parameters()``, or None.
        versions: of upstream's packages that wrote the file, e.g. ``{"nequip": "0.19.1", "allegro": "0.8.3"}``.
        training: epoch, metrics and the like, JSON-like.
        pickled_code_allowed: what the caller said about it.
    """

    path: Path
    model_config: dict[str, Any]
    state: dict[str, Tensor]
    ema_weights: list[Tensor] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    pickled_code_allowed: bool = False


def package_root(names: Iterable[str]) -> str | None:
    """Top folder of a packaged model, by the names of an archive's members; None if the archive is something else."""
    for name in names:
        root, _, member = name.partition("/")
        if member in ("model/eager_model.pkl", "model/package_metadata.txt"):
            return root
    return None


def read_package(path: Path, root: str) -> UpstreamFile:
    """Read a ``.nequip.zip``; no code in it is executed (see :mod:`nequip_md.checkpoint.inert_pickle`).

    Args:
        root: its top folder.

    Raises:
        NequIPMDError: damaged file, or no configuration in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = _yaml(archive, f"{root}/model/config.yaml")
            versions = _package_versions(archive, root)
            views = read_module_state(archive, root, "model/eager_model.pkl")
        check_size(views.values(), path)
        state = {name: view.clone() for name, view in views.items()}
        model_config = config["training_module"]["model"]
    # damaged bytes can raise nearly anything
    except Exception as error:
        raise NequIPMDError(
            f"packaged model {path} cannot be read ({brief(error)}). "
            "It is damaged or of another format: make it again with nequip-package."
        ) from error
    return UpstreamFile(path, model_config, _network(state, path), versions=versions)


def _yaml(archive: zipfile.ZipFile, member: str) -> Any:
    if archive.getinfo(member).file_size > _MEGABYTE:
        raise ValueError(f"{member} has more than {_MEGABYTE} bytes")
    return plain_data(yaml.load(archive.read(member), Loader=_Loader))


def _package_versions(archive: zipfile.ZipFile, root: str) -> dict[str, str]:
    metadata = f"{root}/model/package_metadata.txt"
    if metadata in archive.namelist():
        versions = _yaml(archive, metadata)["versions"]
    else:  # nequip 0.7
        versions = _yaml(archive, f"{root}/model/versions.txt")
    return {name: str(version) for name, version in versions.items()}


def read_lightning(path: Path, names: Iterable[str], allow_pickle: bool) -> UpstreamFile:
    """Read a ``.ckpt`` of ``nequip-train``.

    Args:
        names: of its members.
        allow_pickle: if the file holds more than tensors and plain data, execute what it asks for.

    Raises:
        NequIPMDError: damaged file, no checkpoint of ``nequip-train``, code in it that is not allowed, or a training
            module whose evaluation weights are not known.
    """
    if not any(name.endswith("/data.pkl") for name in names):
        raise NequIPMDError(
            f"{path} is a zip file, but neither a .ckpt of nequip-train nor a packaged .nequip.zip. "
            "Compiled artifacts (.pt2) are no checkpoints: engines load them as they are."
        )
    content = _load_pickle(path, allow_pickle)
    try:
        parameters = content["hyper_parameters"]
        model_config, info = plain_data(dict(parameters["model"])), plain_data(parameters["info_dict"])
        state = dict(content["state_dict"])
        module = info["training_module"]["_target_"]
        versions = {name: str(version) for name, version in info["versions"].items()}
        metrics = plain_data((state.get("val_metrics.0._extra_state") or {}).get("metrics_values_epoch", {}))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NequIPMDError(
            f"{path} is a PyTorch file, but not a checkpoint of nequip-train 0.7 or newer "
            f"({brief(error)}). Give one of those, a .nequip.zip, or a native checkpoint."
        ) from error
    training = {
        "epoch": content.get("epoch"),
        "global_step": content.get("global_step"),
        "training_module": module,
        "metrics": metrics,
    }
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    check_size(tensors.values(), path)
    network = _network({name[6:]: value for name, value in tensors.items() if name.startswith("model.")}, path)
    averages = _ema_weights(path, module, state)
    return UpstreamFile(path, model_config, network, averages, versions, training, allow_pickle)


def _load_pickle(path: Path, allow_pickle: bool) -> Any:
    try:
        return torch.load(verified_copy(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            return _load_code(path)
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" ({found[1]})" if found else ""
        raise NequIPMDError(
            f"checkpoint {path} holds more than tensors and plain data{named}: reading it would execute code stored in "
            "the file. If it is not damaged and you trust its origin, allow that: --allow-pickle on the command line, "
            "allow_pickle=True in Python, model.allow_pickle: true in a training file."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise NequIPMDError(f"checkpoint {path} is damaged ({brief(error)}). {COPY_AGAIN}") from error


def _load_code(path: Path) -> Any:
    try:
        return torch.load(verified_copy(path), map_location="cpu", weights_only=False)
    # the file decides what runs here, so anything can be raised
    except Exception as error:
        raise NequIPMDError(
            f"checkpoint {path} cannot be unpickled ({brief(error)}). "
            "The file is damaged, or it needs a Python package that is not installed."
        ) from error


# whose evaluation model is the plain one, with averaged weights where the checkpoint has them
_TRAINING_MODULES = ("NequIPLightningModule", "EMALightningModule", "ConFIGLightningModule", "EMAConFIGLightningModule")


def _ema_weights(path: Path, module: str, state: dict[str, Any]) -> list[Tensor] | None:
    if module.rpartition(".")[2] not in _TRAINING_MODULES:
        raise NequIPMDError(
            f"checkpoint {path} was trained by {module!r}, whose evaluation weights nequip-md cannot find (known: "
            f"{', '.join(_TRAINING_MODULES)}). Package it with upstream's nequip-package and give the .nequip.zip."
        )
    indices = [int(name.removeprefix("ema.ema_weight_")) for name in state if name.startswith("ema.ema_weight_")]
    if not indices:
        return None
    if not (state.get("ema._extra_state") or {}).get("is_holding_ema_weights", True):
        raise NequIPMDError(
            f"checkpoint {path} was written while trained and averaged (EMA) weights were swapped; upstream refuses it "
            "as well. Take an earlier checkpoint of the run."
        )
    return [state[f"ema.ema_weight_{k}"] for k in sorted(indices)]


def _network(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Strip what upstream wraps around the network, the dictionary of models and the force output."""
    names = sorted({key.partition(".")[0] for key in state})
    if names != [MODEL_NAME]:
        found = ", ".join(names) or "(none)"
        raise NequIPMDError(f"{path} holds the models {found}; only runs of one model, {MODEL_NAME!r}, can be read")
    prefix = f"{MODEL_NAME}.model."
    inner = {key.removeprefix(prefix): value for key, value in state.items()}
    inner.pop("_empty", None)
    if inner and all(key.startswith("func.") for key in inner):
        return {key.removeprefix("func."): value for key, value in inner.items()}
    return inner
