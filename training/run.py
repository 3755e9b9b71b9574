"""A whole training run: data, statistics, model, steps, report."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from pydantic import TypeAdapter, ValidationError

from nequip_md import checkpoint
from nequip_md.atomic import write_atomically
from nequip_md.errors import NequIPMDError
from nequip_md.interrupt import Interrupted
from nequip_md.model.build import build_model
from nequip_md.model.config import AnyConfig, PotentialConfig
from nequip_md.model.potential import Potential
from nequip_md.precision import matmul_precision
from nequip_md.training import fine_tuning
from nequip_md.training.callbacks import BestModel, InterruptedState
from nequip_md.training.children import without_children
from nequip_md.training.config import TrainingConfig
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.data.statistics import Statistics
from nequip_md.training.determinism import deterministic
from nequip_md.training.evaluation.metrics import evaluate
from nequip_md.training.evaluation.predictions import PredictionCollector
from nequip_md.training.folder import BEST, LAST, REPORT, REPORT_PAGE, forget_run, held, holds_run
from nequip_md.training.lightning_module import STATE_KEY, PotentialModule
from nequip_md.training.loggers import make_loggers, require_loggers
from nequip_md.training.parallel import Processes, Replicas
from nequip_md.training.prepare import prepare, resolved
from nequip_md.training.progress import TrainingBar
from nequip_md.training.states import StateFiles

log = logging.getLogger(__name__)

_MAY_CHANGE = {"stop", "output", "device", "compile", "deterministic", "report_page", "loggers"}
"""Sections of the training file that may change when a run is resumed."""
_MAY_CHANGE_IN_DATA = {
    "train",
    "validation",
    "test",
    "isolated_atoms",
    "evaluation_batch_size",
    "keep_on_device",
    "workers",
}


def run_training(config: TrainingConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, dict[str, Any]]:
    """Train a potential, with the arguments and errors of :func:`nequip_md.training.train`.

    Returns:
        Errors of the best model on the validation and test data, by data set and by quantity.
    """
    output = Path(config.output)
    accelerator = _accelerator(config.device)
    processes = Processes.of_this_run()
    require_loggers(config.loggers)
    if resume and not output.is_dir():
        raise NequIPMDError(f"there is no run to resume: the folder {output} does not exist; start without --resume")
    if processes.rank > 0:
        logging.getLogger("nequip_md.training").setLevel(logging.ERROR)  # only the first process reports
    # and only the first one writes
    with held(output) if processes.rank == 0 else nullcontext():
        if processes.rank == 0 and holds_run(output) and not (resume or overwrite):
            raise NequIPMDError(
                f"{output} holds a run already; give --resume to continue it, --overwrite to forget it,"
                " or another --output"
            )
        states = StateFiles(output)

        def note() -> str:
            """A sentence on what is saved, which only the first process knows."""
            return (
                states.note() if processes.rank == 0 else f"process {processes.rank} of {processes.size} saves nothing"
            )

        try:
            with deterministic(config.deterministic), without_children():
                return _train(config, states, states.read() if resume else None, accelerator, processes)
        except Interrupted as stop:
            raise Interrupted(stop.signal, note()) from None
        except SIGTERMException:  # raised by Lightning when it handles the signal itself
            raise Interrupted(signal.SIGTERM, note()) from None
        except RuntimeError as error:
            if not re.match(r"DataLoader worker \(pid.*(killed|exited)", str(error)):
                raise
            raise NequIPMDError(
                f"a process that reads data has died ({str(error).splitlines()[0].strip()}), most often because the"
                f" memory or /dev/shm is full; lower data.workers or data.batch_size. {note()}"
            ) from None
        except OSError as error:  # such as a full disk, when checkpoints or logs are written
            raise NequIPMDError(f"the run in {output} has failed: {error}; {note()}") from None


def _train(
    config: TrainingConfig,
    states: StateFiles,
    state: dict[str, Any] | None,
    accelerator: str,
    processes: Processes,
) -> dict[str, dict[str, Any]]:
    """The body of :func:`run_training`. The output folder is locked; training starts from ``state`` or from the beginning."""
    output = Path(config.output)
    if state is not None:
        _same_run(config, state)
    data, statistics = prepare(config)
    potential = resolved(config, data, statistics) if state is None else _resumed_potential(state, statistics, data)

    torch.manual_seed(config.seed)
    if state is None and "checkpoint" in config.model:
        model = _trained_model(config, potential, data)
        potential = model.config
    else:
        model = build_model(potential)
    log.info("%s model with %d weights", potential.kind, sum(p.numel() for p in model.parameters()))
    record = {
        "statistics": statistics.as_dict(),
        "potential": potential.model_dump(mode="json"),
        "loss": config.loss.model_dump(),
        "data_digests": data.digests,
    }
    module = PotentialModule(model, config, with_stress=data.has("stress"), record=record)
    trainer = _trainer(config, states, accelerator, processes)
    if state is None and processes.rank == 0:
        forget_run(output)
    started = time.monotonic()
    with warnings.catch_warnings():
        # expected here: data in memory needs no worker processes, metrics are logged once per epoch, and the folder of a
        # resumed run exists already and may have been moved
        for message in (
            ".*does not have many workers",
            ".*is smaller than the logging interval",
            "Checkpoint directory .* exists",
            "The dirpath has changed",
            "The ``compute`` method of metric ErrorMetric was called before",  # its sums came from the state
            "You're resuming from a checkpoint that ended before the epoch",  # the batches that were taken are left out
            ".*LeafSpec",
        ):
            warnings.filterwarnings("ignore", message=message)
        # what PyTorch allows in this process holds unless the file says otherwise
        with nullcontext() if config.precision is None else matmul_precision(config.precision):
            trainer.fit(module, datamodule=data, ckpt_path=states.source)
    trainer.strategy.barrier()  # until the best model is written
    log.info("trained %d epochs; this run took %.0f s", trainer.current_epoch, time.monotonic() - started)
    return _finish(output, data, module)


def _trained_model(config: TrainingConfig, potential: PotentialConfig, data: AtomsData) -> Potential:
    """The trained model that ``model.checkpoint`` names, from which training starts."""
    model = fine_tuning.start(config.model, potential, config.optimizer.freeze)
    log.info("training starts from the weights of %s", config.model["checkpoint"])
    if config.model.get("energy_shifts", "refit") != "refit":
        return model
    new = fine_tuning.new_types(config.model, potential)
    return fine_tuning.with_shifts(model, fine_tuning.refitted_shifts(model, data.train, config.data.batch_size, new))


def _same_run(config: TrainingConfig, state: dict[str, Any]) -> None:
    try:  # keys that are newer than the state get their defaults
        then = TrainingConfig.model_validate(state[STATE_KEY]["config"]).model_dump(mode="json")
    except ValidationError:
        raise NequIPMDError(
            "the run to resume was made by another version of nequip-md, which had other keys; resume it with that"
            " version"
        ) from None
    now = config.model_dump(mode="json")
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


def _resumed_potential(state: dict[str, Any], statistics: Statistics, data: AtomsData) -> PotentialConfig:
    record = state[STATE_KEY]["record"]
    for key in ("num_frames", "num_atoms"):
        now, then = getattr(statistics, key), record["statistics"][key]
        if now != then:
            raise NequIPMDError(
                f"the training data has {key} {now}, that of the run to resume had {then}; give the same data files"
            )
    if "data_digests" not in record:
        log.info("the run to resume has kept no digests of its data: whether the data have changed is not checked")
    for name, then in record.get("data_digests", {}).items():
        now = data.digests[name]
        if changed := sorted(key for key in then.keys() & now.keys() if then[key] != now[key]):
            raise NequIPMDError(
                f"the {name} data differ from those of the run to resume in {', '.join(changed)};"
                " give the same data files, or start a new run with another --output"
            )
    return TypeAdapter(AnyConfig).validate_python(record["potential"])


def _trainer(config: TrainingConfig, states: StateFiles, accelerator: str, processes: Processes) -> L.Trainer:
    output = Path(config.output)
    callbacks: list[L.Callback] = [
        BestModel(output / BEST),
        ModelCheckpoint(
            output, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True, enable_version_counter=False
        ),
        InterruptedState(output / LAST),
    ]
    if config.stop.patience is not None:
        callbacks.append(EarlyStopping("validation/loss", patience=config.stop.patience, check_on_train_epoch_end=True))
    show_bar = sys.stdout is not None and sys.stdout.isatty()  # None: a shell has closed it
    if show_bar:
        callbacks.append(TrainingBar())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=accelerator,
        devices=processes.local_size,
        num_nodes=processes.machines,
        strategy="auto" if processes.size == 1 else Replicas(),
        max_epochs=config.stop.max_epochs,
        callbacks=callbacks,
        # Lightning's support of Slurm is not used: it would requeue the job itself, and resume from any
        # hpc_ckpt_*.ckpt in its root folder
        plugins=[states, LightningEnvironment() if processes.size == 1 else TorchElasticEnvironment()],
        default_root_dir=output,
        logger=make_loggers(config.loggers, output),
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,  # forces are a derivative
        use_distributed_sampler=False,  # the data module's sampler knows the epoch
    )


def _finish(output: Path, data: AtomsData, module: PotentialModule) -> dict[str, dict[str, Any]]:
    """Evaluate the best model, read from disk, and write its errors to the report and into the model file."""
    best = output / BEST
    training = checkpoint.read_info(best).training
    model = checkpoint.load(best)
    device = data.trainer.strategy.root_device
    model.to(device)
    loaders = {"validation": data.val_dataloader(), **({"test": data.test_dataloader()} if data.test else {})}
    types = model.config.type_names
    collectors = {name: PredictionCollector(types) for name in loaders if module.config.report_page}
    training["metrics"] = {
        name: evaluate(
            model,
            loader,
            type_names=types,
            with_stress=module.with_stress,
            device=device,
            collector=collectors.get(name),
        )
        for name, loader in loaders.items()
    }
    for collector in collectors.values():
        collector.gather()
    if data.trainer.is_global_zero:
        checkpoint.save(best, model, training=training)
        write_atomically(output / REPORT, (json.dumps(training, indent=2) + "\n").encode())
        if collectors:
            _write_page(output, training, data, module.config, collectors, device)
    return training["metrics"]


def _write_page(
    output: Path,
    record: dict[str, Any],
    data: AtomsData,
    config: TrainingConfig,
    collectors: dict[str, PredictionCollector],
    device: torch.device,
) -> None:
    """Write ``report.html``. An error is reported as a warning, as the training itself has succeeded."""
    try:
        from nequip_md.training.report.page import write_report_page  # imports matplotlib

        predictions = {name: collector.finish() for name, collector in collectors.items()}
        write_report_page(output, record, data, config, predictions, device)
    except Exception as error:
        log.warning("warning: %s was not written (%s: %s)", output / REPORT_PAGE, type(error).__name__, error)
