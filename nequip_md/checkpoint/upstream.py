"""From upstream's files to this package's models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nequip_md.checkpoint import upstream_allegro, upstream_nequip
from nequip_md.checkpoint.limits import check_zip
from nequip_md.checkpoint.native import CheckpointInfo, model_from_state
from nequip_md.checkpoint.upstream_files import UpstreamFile, package_root, read_lightning, read_package
from nequip_md.checkpoint.upstream_options import Options
from nequip_md.checkpoint.upstream_versions import modern_config, modern_state
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import PotentialConfig
from nequip_md.model.potential import Potential

# modifiers that change how upstream computes, not what
_ACCELERATIONS = (
    "enable_TritonContracter",
    "enable_CuEquivarianceContracter",
    "enable_OpenEquivariance",
    "enable_CuEquivariance",
    "enable_ForceStressOutput",
    "disable_ForceStressOutput",
)
_STEPS = 20


@dataclass
class _Architecture:
    """A model section with references followed and wrappers taken off."""

    config: dict[str, Any]
    versions: dict[str, str]
    modifiers: list[dict[str, Any]] = field(default_factory=list)


def read_upstream(path: Path, allow_pickle: bool) -> UpstreamFile:
    """Read a ``.nequip.zip`` or a ``.ckpt``, whichever the content is.

    Raises:
        NequIPMDError: neither, damaged, or needing code that is not allowed.
    """
    names = check_zip(path)
    root = package_root(names)
    return read_lightning(path, names, allow_pickle) if root is None else read_package(path, root)


def convert(file: UpstreamFile) -> Potential:
    """The model of an upstream file, in evaluation mode on the CPU, with averaged (EMA) weights where there are any.

    Raises:
        NequIPMDError: an option, modifier or tensor that is not implemented, by name.
    """
    config, state = _translate(file)
    return model_from_state(config, state, file.path, "The file's configuration and weights are not of one model.")


def upstream_info(file: UpstreamFile) -> CheckpointInfo:
    """What an upstream file says about itself, in the words of this package."""
    config, _ = _translate(file)
    source = ", ".join(f"{name} {version}" for name, version in file.versions.items() if name in ("nequip", "allegro"))
    training = {**file.training, "upstream_versions": file.versions, "ema": file.ema_weights is not None}
    return CheckpointInfo(config, training, source)


def _translate(file: UpstreamFile) -> tuple[PotentialConfig, dict[str, Tensor]]:
    architecture = _resolve(file.model_config, file.versions, file)
    section = modern_config(architecture.config, architecture.versions)
    converter = upstream_allegro if section["_target_"].startswith("allegro.") else upstream_nequip
    config = _apply_modifiers(converter.config_from_upstream(section), architecture.modifiers)
    state = modern_state(config, section["_target_"], _averaged(config, file), architecture.versions)
    state = converter.state_from_upstream(config, state)
    return _with_stored_energies(config, state), state


def _resolve(config: dict[str, Any], versions: dict[str, str], file: UpstreamFile, steps: int = 0) -> _Architecture:
    """Follow a model section to the one that builds the network."""
    if steps > _STEPS:
        raise NequIPMDError(f"{file.path}: its options lead from file to file more than {_STEPS} times, or in a circle")
    target = config.get("_target_", "")
    match target.rpartition(".")[2]:
        case "modify" if target.startswith("nequip."):
            inner = _resolve(config["model"], versions, file, steps + 1)
            modifiers = config.get("modifiers") or []
            if isinstance(modifiers, dict):
                modifiers = [one for some in modifiers.values() for one in some]
            inner.modifiers.extend(modifiers)
            return inner
        case "ModelFromPackage" if target.startswith("nequip."):
            origin = _origin(config["package_path"], target, file)
            return _resolve(origin.model_config, origin.versions, origin, steps + 1)
        case "ModelFromCheckpoint" if target.startswith("nequip."):
            origin = _origin(config["checkpoint_path"], target, file)
            # upstream rebuilds that network with the code of the later run
            return _resolve(origin.model_config, versions, origin, steps + 1)
    return _Architecture(config, versions)


def _origin(named: str, target: str, file: UpstreamFile) -> UpstreamFile:
    """The file that a fine-tuned model started from: it alone knows the architecture."""
    for candidate in (Path(named), file.path.parent / named, file.path.parent / Path(named).name):
        if candidate.is_file() and candidate.resolve() != file.path.resolve():
            return read_upstream(candidate, file.pickled_code_allowed)
    raise NequIPMDError(
        f"{file.path} was trained from another file ({target}: {named!r}), and only that file holds the model's "
        f"options. Put it there, or beside {file.path.name}."
    )


def _apply_modifiers(config: PotentialConfig, modifiers: list[dict[str, Any]]) -> PotentialConfig:
    for section in modifiers:
        options = Options(section, "nequip.model.modify")
        name = options.take("modifier")
        if name in _ACCELERATIONS:
            continue
        if name != "modify_PerTypeScaleShift":
            options.refuse("modifier", name)
        options.ignore("scales", "shifts")  # the values are in the weights
        flags = {f"energy_{name}": bool(options.take(name, False)) for name in ("scales_trainable", "shifts_trainable")}
        options.finish()
        values = {
            key: dict(zip(config.type_names, config.per_type(key, default)))
            for key, default in (("energy_scales", 1.0), ("energy_shifts", 0.0))
        }
        config = type(config)(**{**config.model_dump(), **values, **flags})
    return config


def _with_stored_energies(config: PotentialConfig, state: dict[str, Tensor]) -> PotentialConfig:
    """The configuration with the scales and shifts that the weights hold (training and modifiers change them)."""
    values: dict[str, Any] = {}
    for key, name in (("energy_scales", "scales"), ("energy_shifts", "shifts")):
        stored = state[f"scale_shift.{name}"].tolist()
        single = len(stored) == 1 and not isinstance(getattr(config, key), dict)
        values[key] = stored[0] if single else dict(zip(config.type_names, stored))
    return type(config)(**{**config.model_dump(), **values})


def _averaged(config: PotentialConfig, file: UpstreamFile) -> dict[str, Tensor]:
    """The state with its parameters replaced by their averages, if the file has any."""
    if file.ema_weights is None:
        return file.state
    names = list(_parameter_names(config, file.state))
    shapes = [list(file.state[name].shape) for name in names]
    if shapes != [list(weight.shape) for weight in file.ema_weights]:
        raise NequIPMDError(
            f"checkpoint {file.path}: its {len(file.ema_weights)} averaged (EMA) weights do not match the {len(names)} "
            "parameters of the model; package it with upstream's nequip-package and give the .nequip.zip"
        )
    return {**file.state, **dict(zip(names, file.ema_weights))}


def _parameter_names(config: PotentialConfig, state: dict[str, Tensor]) -> Iterator[str]:
    """Keys of parameters, as opposed to buffers, in the order of upstream's ``Module.parameters()``."""
    radial = getattr(config, "radial_embedding", config)
    trainable = {
        "bessel_weights": getattr(radial, "bessel_trainable", False),
        "scales": config.energy_scales_trainable,
        "shifts": config.energy_shifts_trainable,
    }
    constants = ("_rmax_recip", "w3j", "_rtoi", "output_mask", "lower", "upper", "atomic_numbers", "_qqr2exesquare")
    for key, value in state.items():
        name = key.rpartition(".")[2]
        # e3nn registers Clebsch-Gordan tensors, and weights and biases that it does not have, as buffers
        if name in constants or name.startswith("_w3j") or not trainable.get(name, True) or value.numel() == 0:
            continue
        yield key
