"""Conversion of training files of upstream's ``nequip-train`` (nequip 0.7 and newer) to those of ``nequip-md-train``.

A setting without an equivalent becomes a comment that says why, so that nothing is dropped silently.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ase.data import atomic_numbers

from nequip_md.checkpoint import upstream_allegro, upstream_nequip
from nequip_md.checkpoint.upstream_versions import modern_config
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, refuse_other
from nequip_md.training.config import check_config

# upstream's statistics -> ours, by option of the model
_STATISTICS = {
    "avg_num_neighbors": {"num_neighbors_mean": "auto", "per_type_num_neighbors_mean": "auto_by_type"},
    "energy_scales": {"forces_rms": "force_rms", "per_type_forces_rms": "force_rms_by_type"},
    "energy_shifts": {"per_atom_energy_mean": "auto"},
}
_UPSTREAM_OPTION = {
    "avg_num_neighbors": "avg_num_neighbors",
    "energy_scales": "per_type_energy_scales",
    "energy_shifts": "per_type_energy_shifts",
}
_MODEL = "training_module.model"
_LABEL_KEYS = {"total_energy": "energy_key", "forces": "force_key", "stress": "stress_key", "virial": "virial_key"}
# callbacks that are converted elsewhere, or whose task is done here without asking
_CALLBACKS = (
    "LossCoefficientScheduler", "ModelCheckpoint", "LearningRateMonitor", "TQDMProgressBar", "RichProgressBar",
)  # fmt: skip
_LOADERS = {"train_dataloader": "batch_size", "val_dataloader": "evaluation_batch_size"}


class _Section:
    """One mapping of upstream's file, read key by key; keys that were not read are noted at the end."""

    def __init__(self, content: Any, path: str, notes: list[str]):
        self._left = dict(content) if isinstance(content, dict) else {}
        self.path, self._notes = path, notes
        self.target = str(self._left.pop("_target_", "")).rpartition(".")[2]

    def take(self, key: str, default: Any = None) -> Any:
        return self._left.pop(key, default)

    def section(self, key: str) -> _Section:
        return _Section(self._left.pop(key, None), f"{self.path}.{key}", self._notes)

    def say(self, what: str, reason: str) -> None:
        """Note why a setting of this section is not converted, or is converted to something different."""
        self._notes.append(f"{self.path}{what}: {reason}")

    def leave(self, key: str, reason: str) -> None:
        """Note why a key is left out, if the section has it."""
        if self._left.pop(key, None) is not None:
            self.say(f".{key}", reason)

    def ignore(self, *keys: str) -> None:
        """Ignore keys that this package needs no setting for, or that only affect how upstream computes."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        for key in list(self._left):
            self.leave(key, "has no equivalent")


def convert(path: str | Path) -> str:
    """The text of a training file with the same meaning as one of upstream's, as far as possible.

    Raises:
        NequIPMDError: the file cannot be read, is no training file, or has a model that is not implemented.
    """
    refuse_other(path, FileKind.TRAINING_FILE)
    content = _read(Path(path))
    try:
        return _text(Path(path), *_converted(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NequIPMDError(
            f"{path} is not written as nequip-train wants it, or has values that only a run resolves: {error!r}"
        ) from error


def _converted(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The converted training file, and notes on settings that are left out."""
    notes: list[str] = []
    data, trainer, module = (_Section(content.get(k), k, notes) for k in ("data", "trainer", "training_module"))
    model = module.take("model") or {}
    callbacks = trainer.take("callbacks") or []
    result = {
        "seed": model.get("seed", 0),
        **_trainer(trainer, callbacks),
        "model": _model(model, notes),
        "data": _data(data),
        **_training_module(module),
    }
    for callback in callbacks:
        if _class(callback) == "LossCoefficientScheduler":
            _change_loss(result, callback["schedule"], lambda reason: trainer.say(".callbacks", reason))
    if (clip := trainer.take("gradient_clip_val")) is not None:
        result["optimizer"]["gradient_clip"] = clip
    trainer.finish()
    if (content.get("global_options") or {}).get("allow_tf32"):
        notes.append("global_options.allow_tf32: training has the model's dtype; nequip-md-export has --precision tf32")
    # other keys of the top level are variables, whose values have been put where they are used
    return {k: v for k, v in result.items() if v != {}}, notes


_RESOLVERS = {
    "int_mul": lambda a, b: int(a) * int(b),
    "int_div": lambda a, b: int(a) // int(b),
    "concat_lists": lambda a, b: [*a, *b],
    "list_to_constant_dict": dict.fromkeys,
}
"""Functions in upstream's configurations that depend on their arguments only."""


def _read(path: Path) -> dict[str, Any]:
    """The content of a file with its references resolved; those that only a run can resolve stay unchanged."""
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ModuleNotFoundError:
        raise NequIPMDError("reading a file of upstream's needs the package omegaconf: pip install omegaconf") from None

    def followed(node: Any) -> Any:
        if not OmegaConf.is_config(node):
            return node
        raw = OmegaConf.to_container(node, resolve=False)
        found = {}
        for key in raw if isinstance(raw, dict) else range(len(raw)):
            try:
                found[key] = followed(node[key])
            except OmegaConfBaseException:
                found[key] = raw[key]
        return found if isinstance(raw, dict) else list(found.values())

    ours = [name for name in _RESOLVERS if not OmegaConf.has_resolver(name)]
    for name in ours:
        OmegaConf.register_new_resolver(name, _RESOLVERS[name])
    try:
        content = followed(OmegaConf.load(path))
    except OSError as error:
        raise NequIPMDError(f"cannot read the training file {path}: {error.strerror}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise NequIPMDError(f"{path} is not a training file of nequip-train: {error}") from None
    finally:
        for name in ours:  # resolvers are global, and upstream's package refuses to register its own twice
            OmegaConf.clear_resolver(name)
    if not isinstance(content, dict) or not isinstance(content.get("training_module"), dict):
        raise NequIPMDError(
            f"{path} is not a training file of nequip-train (0.7 or newer): it has no section training_module"
        )
    if "defaults" in content:
        raise NequIPMDError(f"{path} is put together from several files (defaults); write them into one file first")
    return content


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


def _model(section: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    section = dict(section)
    if section.get("_target_", "").endswith(".modify"):
        notes.append(f"{_MODEL}.modifiers: a model is trained without modifiers")
        section = dict(section["model"])
    if "ModelFrom" in section.get("_target_", ""):
        raise NequIPMDError(f"{_MODEL} starts from the weights of another model, which nequip-md-train does not do")
    words = {}
    for ours, known in _STATISTICS.items():
        theirs = _UPSTREAM_OPTION[ours]
        if not _is_open(value := section.get(theirs)):
            continue
        name = value.strip("${} ").rpartition(":")[2]
        words[ours], section[theirs] = known.get(name, "auto"), 1.0
        if ours == "energy_shifts":
            notes.append(f"{_MODEL}.{theirs}: here energies of isolated atoms, or a fit by composition, not {name}")
        elif name not in known:
            notes.append(f"{_MODEL}.{theirs}: {name} is replaced with the statistic 'auto'")
    for key, value in section.items():
        if _is_open(value):
            raise NequIPMDError(f"{_MODEL}.{key} is {value}, which only nequip-train resolves; write its value")
    section = modern_config(section, {})
    converter = upstream_allegro if section["_target_"].startswith("allegro.") else upstream_nequip
    config = converter.config_from_upstream(section)
    if unknown := [name for name in config.type_names if name not in atomic_numbers]:
        raise NequIPMDError(
            f"{_MODEL}.type_names has {', '.join(unknown)}; nequip-md-train needs chemical symbols, one type"
            " for each element: rename the types, or train with upstream's and export its model"
        )
    fields = type(config).model_fields
    options = {k: v for k, v in config.model_dump(mode="json").items() if getattr(config, k) != fields[k].default}
    # given in any case, because what is left out would be taken from the data
    return {"kind": config.kind, **options, **{key: words.get(key, getattr(config, key)) for key in _STATISTICS}}


def _data(section: _Section) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if section.target != "ASEDataModule":
        section.leave("dataset", f"{section.target} downloads data; give files in data.train and data.validation")
    for theirs, ours in (("train_file_path", "train"), ("val_file_path", "validation"), ("test_file_path", "test")):
        if paths := section.take(theirs):
            result[ours] = paths
    splits = section.take("split_dataset") or []
    splits = [splits] if isinstance(splits, dict) else splits
    split = splits[0] if len(splits) == 1 else {}
    if splits and ("train" in result or "train" not in split or "file_path" not in split):
        section.say(".split_dataset", "only the training frames can be split, and only by one rule for all")
    elif splits:
        result["train"] = split["file_path"]
        for theirs, ours in (("val", "validation_split"), ("test", "test_split")):
            if theirs in split:
                result[ours] = split[theirs]
        if "predict" in split:
            section.say(".split_dataset.predict", "these frames are among the training frames here")
        section.say(".split_dataset", "frames are drawn in another order, so that the parts differ")
    if (seed := section.take("seed")) is not None:
        result["split_seed"] = seed
    for theirs, ours in (section.take("key_mapping") or {}).items():
        if ours in _LABEL_KEYS:
            result[_LABEL_KEYS[ours]] = theirs
        else:
            section.say(f".key_mapping.{theirs}", f"{ours} is not a label here")
    for transform in section.take("transforms") or []:
        name = str(transform.get("_target_", "")).rpartition(".")[2]
        if name == "VirialToStressTransform":
            result.setdefault("virial_key", "virial")
        elif name not in ("ChemicalSpeciesToAtomTypeMapper", "NeighborListTransform"):
            section.say(".transforms", f"{name} is not applied here; apply it to the data file")
    for theirs, ours in _LOADERS.items():
        size = (section.take(theirs) or {}).get("batch_size")
        if size is not None:
            result[ours] = size
    section.leave("ase_args", "ASE finds out the format of a file by itsel")
    section.ignore("stats_manager", "include_keys", "test_dataloader", "predict_dataloader")
    section.finish()
    return result


def _training_module(section: _Section) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"ema_decay": None}
    if section.target.startswith("EMA"):
        optimizer["ema_decay"] = section.take("ema_decay", 0.999)
    theirs = section.section("optimizer")
    if schedule_free := section.target == "ScheduleFreeLightningModule" and theirs.target == "AdamWScheduleFree":
        optimizer["kind"] = "schedule_free"
    elif section.target not in ("EMALightningModule", "NequIPLightningModule"):
        section.say("", f"{section.target} is replaced with plain steps of AdamW")
    if schedule_free:
        if warmup := theirs.take("warmup_steps", 0):
            optimizer["warmup_steps"] = warmup
    elif theirs.target not in ("Adam", "AdamW"):
        theirs.say("", f"{theirs.target or 'the default'} is replaced with AdamW")
    optimizer["learning_rate"] = theirs.take("lr", 0.0025 if schedule_free else 1e-3)  # the optimizer's own default
    if (betas := theirs.take("betas")) is not None:
        optimizer["betas"] = list(betas)
    decay = theirs.take("weight_decay", 0.01 if theirs.target == "AdamW" else 0.0)
    if decay and theirs.target == "Adam":
        theirs.say(".weight_decay", "that of Adam is another one than that of AdamW")
    elif decay:
        optimizer["weight_decay"] = decay
    theirs.ignore("fused", "foreach")
    theirs.finish()
    result = {"loss": _loss(section.section("loss")), "optimizer": optimizer}
    if schedule_free:
        section.leave("lr_scheduler", "a schedule-free optimizer takes none here")
    else:
        result["schedule"] = _schedule(section.section("lr_scheduler"), optimizer["learning_rate"])
    section.ignore("train_metrics", "val_metrics", "test_metrics")
    section.finish()
    return result


_LOSSES = {"total_energy": "energy", "forces": "force", "stress": "stress"}


def _weights(coefficients: dict[str, float], names: dict[str, str]) -> dict[str, float]:
    """Weights of the loss from upstream's coefficients, which it divides by their sum."""
    total = sum(coefficients.values())
    return {ours: coefficients.get(theirs, 0.0) / total for theirs, ours in names.items()}


def _change_loss(result: dict[str, Any], schedule: dict[Any, dict[str, float]], say: Callable[[str], None]) -> None:
    """Put upstream's schedule of coefficients, by epoch from 0, into the converted file's section of the loss."""
    names = {f"{theirs}_mse": ours for theirs, ours in _LOSSES.items() if theirs != "total_energy"}
    changes = []
    for epoch, coefficients in sorted((int(epoch), c) for epoch, c in schedule.items()):
        energy = next((name for name in coefficients if name in ("per_atom_energy_mse", "total_energy_mse")), "")
        if unknown := coefficients.keys() - {energy, *names}:
            say(f"{', '.join(sorted(unknown))} is no part of the loss here; give loss.schedule")
            return
        weights = _weights(coefficients, {energy: "energy", **names})
        if epoch == 0:
            result["loss"] = result.get("loss", {}) | weights
        else:
            changes.append({"epoch": epoch + 1, **weights})
    if changes:
        result["loss"] = result.get("loss", {}) | {"schedule": changes}


def _loss(section: _Section) -> dict[str, float]:
    if section.target not in ("EnergyForceLoss", "EnergyForceStressLoss", "EnergyOnlyLoss"):
        section.say("", f"{section.target} is not the loss here; give loss.energy, force and stress")
        return {}
    given = {"EnergyForceLoss": 2, "EnergyForceStressLoss": 3, "EnergyOnlyLoss": 1}[section.target]
    coefficients = section.take("coeffs") or dict.fromkeys(list(_LOSSES)[:given], 1.0)
    if section.take("per_atom_energy", True) is not True:
        section.say(".per_atom_energy", "the energy is per atom here; give another loss.energy")
    section.finish()
    return _weights(coefficients, _LOSSES)


def _schedule(section: _Section, learning_rate: float) -> dict[str, Any]:
    theirs = section.section("scheduler")
    constant = {"kind": "constant"}
    match theirs.target:
        case "":
            result = constant
        case "ReduceLROnPlateau":
            # PyTorch's defaults, where upstream's file leaves them out
            result = {
                "kind": "plateau",
                "factor": theirs.take("factor", 0.1),
                "patience": theirs.take("patience", 10),
                "min_learning_rate": theirs.take("min_lr", 0.0),
            }
        case "CosineAnnealingLR":
            result = {"kind": "cosine", "final_fraction": theirs.take("eta_min", 0.0) / learning_rate}
            theirs.leave("T_max", "the schedule ends with stop.max_epochs or stop.max_time")
        case name:
            section.say(".scheduler", f"{name} is not implemented; the learning rate is constant")
            return constant
    theirs.finish()
    section.ignore("monitor", "interval", "frequency")
    section.finish()
    return result


def _class(content: dict[str, Any]) -> str:
    return str(content.get("_target_", "")).rpartition(".")[2]


def _trainer(section: _Section, callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    stop: dict[str, Any] = {}
    if (epochs := section.take("max_epochs")) is not None:
        if epochs > 0:
            stop["max_epochs"] = epochs
        else:
            section.say(".max_epochs", "there is no training without end; give stop.max_epochs")
    time = section.take("max_time")
    if isinstance(time, str) and time.count(":") == 3:
        days, hours, rest = time.split(":", 2)
        stop["max_time"] = f"{24 * int(days) + int(hours)}:{rest}"
    elif time is not None:
        section.say(".max_time", f"{time!r} is not understood; give stop.max_time")
    for callback in callbacks:
        name = _class(callback)
        if name == "EarlyStopping":
            stop["patience"] = callback.get("patience", 3)
            section.say(".callbacks", "EarlyStopping watches the validation loss here, without min_delta")
        elif name not in _CALLBACKS:
            section.say(".callbacks", f"{name} has no equivalent")
    device = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}.get(section.take("accelerator", "auto"), "auto")
    loggers = _loggers(section)
    section.ignore(
        "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "log_every_n_steps",
        "num_sanity_val_steps", "inference_mode",
    )  # fmt: skip
    return {"device": device, "stop": stop, **({"loggers": loggers} if loggers else {})}


def _loggers(section: _Section) -> list[str]:
    names = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "TensorBoardLogger": "tensorboard", "CSVLogger": "csv"}
    given = section.take("logger")
    given = given if isinstance(given, list) else [given] if isinstance(given, dict) else []
    found = []
    for logger in given:
        theirs = _class(logger)
        if theirs in names:
            found.append(names[theirs])
        else:
            section.say(".logger", f"{theirs or logger} has no equivalent")
        if options := sorted(logger.keys() - {"_target_"}):
            section.say(
                ".logger", f"{theirs}'s {', '.join(options)} are left out; docs/training.md says what is set here"
            )
    return found


def _text(path: Path, content: dict[str, Any], notes: list[str]) -> str:
    head = [f"made from {path.name} by nequip-md-train --from-nequip"]
    try:
        check_config(content, Path())
    except NequIPMDError as error:
        head.append(f"NOT COMPLETE:\n{error}")
    head.append("Relative paths start at the folder of this file. The schedule and the best model follow the")
    head.append("validation loss. Defaults are those of nequip 0.19 and nequip-allegro 0.8.")
    if notes:
        head.append("Not converted, or otherwise:")
        head += [textwrap.fill(f"- {note}", 116, subsequent_indent="  ") for note in notes]
    comment = "".join(f"# {line}\n" for text in head for line in text.splitlines())
    return comment + "\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=116)
