"""Functions of ``nequip-md-train`` for programs and notebooks. Importing this module imports neither PyTorch nor Lightning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nequip_md.errors import NequIPMDError, install_command
from nequip_md.memory import keep_freed_memory
from nequip_md.training.folder import BEST

if TYPE_CHECKING:
    from nequip_md.training.config import TrainingConfig


@dataclass(frozen=True)
class TrainingResult:
    """Results of a training run.

    Attributes:
        folder: the output folder: checkpoints, ``report.json``, ``report.html`` and logs.
        best: the best model, a native checkpoint in that folder.
        metrics: errors of that model by data set (``validation``, ``test``) and by quantity: ``energy_mae`` and
            ``energy_rmse`` in eV/atom, ``force_mae`` and ``force_rmse`` in eV/angstrom, ``stress_mae`` and
            ``stress_rmse`` in eV/angstrom^3 where stresses were trained on; ``force_mae_by_type`` and
            ``force_rmse_by_type`` map the names of types to eV/angstrom.
    """

    folder: Path
    best: Path
    metrics: dict[str, dict[str, Any]]


def train(
    config: str | os.PathLike | Mapping[str, Any] | TrainingConfig,
    *,
    output: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train a potential and write ``best.nqmd``, ``report.json``, ``report.html`` and logs to the output folder.

    One line for each epoch is logged to the logger ``nequip_md.training`` at level INFO, which Python does not show
    unless told so (``logging.basicConfig(level=logging.INFO)``).

    Args:
        config: a training file (YAML), its content as a mapping, or that content as :func:`load_config` checked it.
            Paths of data in a mapping start at the current folder.
        output: folder of checkpoints and logs, instead of that of ``config``.
        resume: continue the run in the output folder exactly where it ended.
        overwrite: delete the results of a previous run in the output folder.

    Raises:
        NequIPMDError: the training file or data cannot be used, the output folder is in use, the resumed run has other settings or
            data, training diverges, or a package is not installed.
        Interrupted: the process received SIGTERM; for SIGINT (Ctrl-C) only within :func:`nequip_md.interrupt.interruptible`, as
            Lightning ends the process otherwise.
    """
    if resume and overwrite:
        raise NequIPMDError("resume and overwrite exclude each other: a run is continued or forgotten")
    config = _checked(config, output)
    try:
        from nequip_md.training.run import run_training
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    keep_freed_memory()
    metrics = run_training(config, resume=resume, overwrite=overwrite)
    folder = Path(config.output)
    return TrainingResult(folder, folder / BEST, metrics)


def check(config: str | os.PathLike | Mapping[str, Any] | TrainingConfig) -> None:
    """Do all that :func:`train` does before it trains: read the data, compute its statistics, build the model.

    Raises:
        NequIPMDError: the training file or data cannot be used, or a package is not installed.
    """
    config = _checked(config)
    try:
        from nequip_md.training.prepare import check as check_data
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    check_data(config)


def _checked(
    config: str | os.PathLike | Mapping[str, Any] | TrainingConfig, output: str | os.PathLike | None = None
) -> TrainingConfig:
    from nequip_md.training.config import check_config, load_config

    if isinstance(config, Mapping):
        try:
            config = check_config(dict(config), Path.cwd())
        except NequIPMDError as error:
            raise NequIPMDError(f"the training configuration is not valid\n{error}") from None
    elif isinstance(config, (str, os.PathLike)):
        config = load_config(config)
    return config.model_copy(update={"output": os.fspath(output)}) if output else config


def _not_installed(error: ModuleNotFoundError) -> NequIPMDError:
    return NequIPMDError(f"training needs the package {error.name}: {install_command('train')}")
