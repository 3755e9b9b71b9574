"""A whole training run: data, statistics, model, steps, report."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from pydantic import TypeAdapter

from nequip_md import checkpoint
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import AnyConfig, PotentialConfig
from nequip_md.model.potential import build_model
from nequip_md.training.callbacks import BestModel
from nequip_md.training.config import AUTO_VALUES, TrainingConfig
from nequip_md.training.data import AtomsData, Labels
from nequip_md.training.lightning_module import STATE_KEY, PotentialModule
from nequip_md.training.metrics import evaluate
from nequip_md.training.statistics import Statistics, automatic_value, compute_statistics, isolated_atom_energies

log = logging.getLogger(__name__)

BEST = "best.nqmd"
"""The best model so far, in the output folder: a native checkpoint."""
LAST = "last.ckpt"
"""The state after the last epoch, in the output folder: what ``--resume`` continues from."""

_MAY_CHANGE = {"stop", "output", "device"}
"""Sections that a resumed run may have otherwise than the run it continues."""
_MAY_CHANGE_IN_DATA = {"train", "validation", "test", "isolated_atoms", "evaluation_batch_size", "keep_on_device"}


def train(config: TrainingConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, dict[str, float]]:
    """Train a potential and write ``best.nqmd``, ``report.json`` and logs to the output folder.

    Args:
        resume: continue the run in the output folder, exactly where it ended.
        overwrite: forget the run in the output folder.

    Returns:
        Errors of the best model on the validation and test data, by data set and by quantity.

    Raises:
        NequIPMDError: data that cannot be used, an output folder in use, a resumed run that differs, divergence.
    """
    output = Path(config.output)
    state = _previous_state(output, resume, overwrite)
    if state is not None:
        _same_run(config, state)
    accelerator = _accelerator(config.device)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NequIPMDError(f"cannot make the output folder {output}: {error.strerror}") from None

    data = AtomsData(config.data, config.potential(), config.seed)
    for label, weight in (
        ("energy", config.loss.energy),
        ("forces", config.loss.force),
        ("stress", config.loss.stress),
    ):
        if weight > 0 and not data.has(label):
            key = label.removesuffix("s") if label == "forces" else label
            raise NequIPMDError(
                f"loss.{key} is {weight}, but no training frame has {label}; set it to 0 or check data.{key}_key"
            )
    statistics = compute_statistics(data.train, config.model["type_names"])
    potential = _resolved(config, data, statistics) if state is None else _resumed_potential(state, statistics)

    torch.manual_seed(config.seed)
    model = build_model(potential)
    log.info("%s model with %d weights", potential.kind, sum(p.numel() for p in model.parameters()))
    record = {
        "statistics": statistics.as_dict(),
        "potential": potential.model_dump(mode="json"),
        "loss": config.loss.model_dump(),
    }
    module = PotentialModule(model, config, with_stress=data.has("stress"), record=record)
    trainer = _trainer(config, output, accelerator)
    started = time.monotonic()
    with warnings.catch_warnings():
        # data in memory needs no loader processes, logs are per epoch, and a run that is resumed has its folder already
        for message in (
            ".*does not have many workers",
            ".*is smaller than the logging interval",
            "Checkpoint directory .* exists",
            ".*LeafSpec",
        ):
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(module, datamodule=data, ckpt_path=output / LAST if state is not None else None)
    log.info("trained %d epochs; this run took %.0f s", trainer.current_epoch, time.monotonic() - started)
    return _finish(output, data, module)


def _previous_state(output: Path, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    last = output / LAST
    if resume:
        if not last.exists():
            raise NequIPMDError(
                f"there is no run to resume in {output} (no {LAST}); start without --resume, or give its --output"
            )
        return torch.load(last, map_location="cpu", weights_only=True)
    if last.exists() and not overwrite:
        raise NequIPMDError(
            f"{output} holds a run already; give --resume to continue it, --overwrite to forget it, or another --output"
        )
    for name in (LAST, BEST):
        (output / name).unlink(missing_ok=True)
    return None


def _same_run(config: TrainingConfig, state: dict[str, Any]) -> None:
    now, then = config.model_dump(mode="json"), state[STATE_KEY]["config"]
    for section in now.keys() - _MAY_CHANGE:
        if not isinstance(now[section], dict):
            pairs = {section: (now[section], then[section])}
        else:
            keys = now[section].keys() | then[section].keys()
            keys -= _MAY_CHANGE_IN_DATA if section == "data" else set()
            pairs = {f"{section}.{k}": (now[section].get(k), then[section].get(k)) for k in keys}
        for key, (new, old) in sorted(pairs.items()):
            if new != old:
                raise NequIPMDError(
                    f"{key} is {new!r}, but the run to resume has {old!r}; set it back,"
                    " or start a new run with another --output"
                )


def _accelerator(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise NequIPMDError(
            "device is 'cuda', but this machine has no CUDA device that PyTorch can use; use 'cpu' or 'auto'"
        )
    return "gpu" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _resolved(config: TrainingConfig, data: AtomsData, statistics: Statistics) -> PotentialConfig:
    """The model's configuration with its automatic values, which are logged."""
    types = config.model["type_names"]
    labels = Labels(config.data.energy_key, config.data.force_key, config.data.stress_key)
    isolated = isolated_atom_energies(data.isolated_atoms, types, labels) if data.isolated_atoms else None
    potential = config.potential(lambda key, word: automatic_value(key, word, statistics, isolated, types))
    for key in AUTO_VALUES:
        log.info(
            "model.%s = %s%s",
            key,
            getattr(potential, key),
            " (from the data)" if isinstance(config.model.get(key, ""), str) else "",
        )
    if isolated is None and statistics.composition_rank < len(types):
        log.warning(
            "the training frames have %d independent compositions for %d types: only sums of the shifts mean something,"
            " energies of isolated atoms do not",
            statistics.composition_rank,
            len(types),
        )
    return potential


def _resumed_potential(state: dict[str, Any], statistics: Statistics) -> PotentialConfig:
    record = state[STATE_KEY]["record"]
    for key in ("num_frames", "num_atoms"):
        now, then = getattr(statistics, key), record["statistics"][key]
        if now != then:
            raise NequIPMDError(
                f"the training data has {key} {now}, that of the run to resume had {then}; give the same data files"
            )
    return TypeAdapter(AnyConfig).validate_python(record["potential"])


def _trainer(config: TrainingConfig, output: Path, accelerator: str) -> L.Trainer:
    callbacks: list[L.Callback] = [
        BestModel(output / BEST),
        ModelCheckpoint(
            output, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True, enable_version_counter=False
        ),
    ]
    if config.stop.patience is not None:
        callbacks.append(EarlyStopping("validation/loss", patience=config.stop.patience, check_on_train_epoch_end=True))
    show_bar = sys.stdout.isatty()
    if show_bar:
        callbacks.append(RichProgressBar())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=config.stop.max_epochs,
        callbacks=callbacks,
        logger=_loggers(output),
        gradient_clip_val=config.optimizer.gradient_clip,
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # forces are a derivative
        use_distributed_sampler=False,  # the data module's sampler knows the epoch
    )


def _loggers(output: Path) -> list[Logger]:
    table = CSVLogger(output, name="logs")
    if importlib.util.find_spec("tensorboard") is None:
        log.info("tensorboard is not installed, so there will be no TensorBoard log: pip install tensorboard")
        return [table]
    return [table, TensorBoardLogger(output, name="logs", version=table.version)]


def _finish(output: Path, data: AtomsData, module: PotentialModule) -> dict[str, dict[str, float]]:
    """Evaluate the best model as it lies on disk, and write its errors beside it and into it."""
    best = output / BEST
    training = checkpoint.read_info(best).training
    model = checkpoint.load(best)
    device = data.trainer.strategy.root_device
    model.to(device)
    loaders = {"validation": data.val_dataloader(), **({"test": data.test_dataloader()} if data.test else {})}
    training["metrics"] = {
        name: evaluate(model, loader, with_stress=module.with_stress, device=device) for name, loader in loaders.items()
    }
    checkpoint.save(best, model, training=training)
    (output / "report.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    return training["metrics"]
