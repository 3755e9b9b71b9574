"""Where the numbers of each epoch go: always a table, and TensorBoard, Weights & Biases or MLflow where wanted."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from nequip_md.errors import NequIPMDError
from nequip_md.training.report.history import LOGS

log = logging.getLogger(__name__)

PROJECT = "nequip-md"
"""Project of Weights & Biases and experiment of MLflow, unless their own variables of the environment name others."""


def require_loggers(names: Sequence[str] | None) -> None:
    """Refuse loggers whose packages are missing, before any work is done.

    Raises:
        NequIPMDError: with the command that installs the package.
    """
    for name in names or ():
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise NequIPMDError(
                f"loggers has {name}, but the package {name} is not installed: pip install {name}, or take it out"
            )


def make_loggers(names: Sequence[str] | None, output: Path) -> list[Logger]:
    """Loggers of a run.

    Args:
        names: as ``loggers`` of a training file; None means TensorBoard if it is installed.
        output: folder of the run, whose name is that of the run.

    Returns:
        The table first, which every run has: ``report.html`` is drawn from it.

    Raises:
        NequIPMDError: a service that cannot be reached or refuses the run.
    """
    table = CSVLogger(output, name=LOGS, flush_logs_every_n_steps=1)  # a run may be killed at any time
    loggers: list[Logger] = [table]
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") is not None else []
        if not names:
            log.info("tensorboard is not installed, so there will be no TensorBoard log: pip install tensorboard")
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(output, name=LOGS, version=table.version))
        elif name in _SERVICES:
            loggers.append(_started(name, output))
    return loggers


class _FinishingWandbLogger(WandbLogger):
    """Ends its run with the training: a second training in the same process is another run."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.experiment.finish(exit_code=int(status != "success"))


def _wandb(output: Path) -> Logger:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return _FinishingWandbLogger(project=project, name=output.name, save_dir=str(output))


def _mlflow(output: Path) -> Logger:
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=output.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{output / 'mlflow.db'}"),
    )


_SERVICES: dict[str, tuple[Callable[[Path], Logger], str]] = {
    "wandb": (_wandb, "log in with wandb login, or set WANDB_MODE=offline"),
    "mlflow": (_mlflow, "check MLFLOW_TRACKING_URI; without it the run goes to mlflow.db in the output folder"),
}
"""How each is made for an output folder, and what to do if that fails."""


def _started(name: str, output: Path) -> Logger:
    """A logger whose run has begun: otherwise a service would refuse it in the middle of the first epoch."""
    make, remedy = _SERVICES[name]
    try:
        logger = make(output.resolve())
        _ = logger.experiment
    except Exception as error:  # each service has its own
        raise NequIPMDError(f"{name} cannot start a run ({type(error).__name__}: {error}); {remedy}") from None
    return logger
