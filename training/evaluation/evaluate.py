"""Errors of a model on labelled structures. Importing this module imports neither PyTorch nor Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nequip_md.errors import NequIPMDError, install_command

if TYPE_CHECKING:
    from nequip_md.training.evaluation.error_groups import Errors

Names = str | Sequence[str] | None


@dataclass(frozen=True)
class Evaluation:
    """Errors of a model. Energies in eV, forces in eV/angstrom, stresses in eV/angstrom^3.

    The errors of a group are ``count``, ``mae``, ``rmse`` and ``max`` (the largest absolute error) by quantity:
    ``energy_per_atom``, ``energy``, ``force`` (components), ``stress`` (components). A quantity without a label is left
    out.

    Attributes:
        model: the file.
        frames, atoms: number of frames and of atoms in them.
        isolated_atoms: frames of isolated atoms, which are left out.
        all: errors of all frames together.
        by_file: errors of each file.
        by_group: errors of the frames with each value of ``group_key``; empty if no frame has that key.
        group_key: key in ``Atoms.info`` that the frames are grouped by.
        by_element: errors of the force components on the atoms of each model type.
        by_force: the same by the norm of the labelled force on the atom, with ``from`` and ``to`` of the interval.
        worst: the worst frames, ``file``, ``index`` in it and ``error``: by ``force`` (root mean square error of the
            components) and by ``energy_per_atom``.
    """

    model: str
    frames: int
    atoms: int
    isolated_atoms: int
    all: Errors
    by_file: dict[str, Errors]
    by_group: dict[str, Errors]
    group_key: str
    by_element: dict[str, dict[str, float]]
    by_force: list[dict[str, Any]]
    worst: dict[str, list[dict[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``nequip-md-evaluate --json`` writes them."""
        return asdict(self)


def evaluate_model(
    model: str | os.PathLike,
    data: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    energy_key: Names = None,
    force_key: Names = None,
    stress_key: Names = None,
    virial_key: Names = None,
    train_file: str | os.PathLike | None = None,
    group_key: str | None = None,
    worst: int = 5,
    device: str | None = None,
    batch_size: int = 8,
    output: str | os.PathLike | None = None,
    plots: str | os.PathLike | None = None,
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict energies, forces and stresses of labelled structures and compare them with the labels.

    Args:
        model: a checkpoint (what :func:`nequip_md.load_checkpoint` takes), evaluated in eager mode, or an artifact
            (``.pt2``).
        data: one file or several, in any format that ASE reads.
        energy_key: name of the energy as in the ``data`` section of a training file, or several names, of which the
            first that a frame has counts.
        force_key: the same for the forces.
        stress_key: the same for the stress.
        virial_key: the same for the virial.
        train_file: a training file, whose ``data`` section gives the names and units of the labels.
        group_key: key in ``Atoms.info`` by whose value errors are grouped; default is ``config_type``, where frames
            have it.
        worst: number of worst frames to name.
        device: ``cpu`` or ``cuda``; default is the artifact's device, for checkpoints a GPU if there is one.
        batch_size: frames that are evaluated at once.
        output: an extended XYZ file to write, with the predictions as ``nequip_md_energy``, ``nequip_md_forces`` and
            ``nequip_md_stress`` (3 x 3, where the cell has a volume) beside the labels.
        plots: a folder to draw ``parity.png`` and ``force_errors.png`` in.
        allow_pickle: permit upstream files whose format executes code stored in them.
        progress: called with the number of frames that are done and that there are, after each batch.

    Raises:
        NequIPMDError: a model or a file that cannot be used, an element that the model lacks, a frame that has no atom
            or whose prediction is not finite, no frame with a label (unless there is ``output``), or an option out of
            range.
        OSError: a result that cannot be written.
    """
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    files = [os.fspath(path) for path in files]
    _check_options(files, worst, batch_size, output)
    try:
        from nequip_md.training.evaluation import parts

        if plots is not None:  # first, so that no work is lost where matplotlib is missing
            from nequip_md.training.report.plots import draw_predictions
    except ModuleNotFoundError as error:
        package = error.name.partition(".")[0]
        raise NequIPMDError(f"evaluation needs the package {package}: {install_command('train')}") from None
    labels = parts.labels_of((energy_key, force_key, stress_key, virial_key), train_file)
    evaluator = parts.load_evaluator(Path(model), device, allow_pickle)
    frames = parts.read_data(files, labels, group_key)
    predictions = parts.predict_frames(evaluator, frames, batch_size, output, progress)
    result = parts.summarize(os.fspath(model), predictions, frames, worst)
    if plots is not None:
        draw_predictions(predictions, Path(plots))
    return result


def require_folder(path: str | os.PathLike) -> None:
    """Refuse a file to write whose folder does not exist, before any work is done.

    Raises:
        NequIPMDError: with the name of the folder.
    """
    folder = os.path.dirname(os.fspath(path)) or "."
    if not os.path.isdir(folder):
        raise NequIPMDError(f"cannot write {os.fspath(path)}: there is no folder {folder}; make it first")


def _check_options(files: list[str], worst: int, batch_size: int, output: str | os.PathLike | None) -> None:
    if not files:
        raise NequIPMDError("there is no data file; give one or several")
    if batch_size < 1:
        raise NequIPMDError(f"the batch size is {batch_size}; give 1 or more frames")
    if worst < 0:
        raise NequIPMDError(f"the number of worst frames is {worst}; give 0 or more")
    if output is not None:
        require_folder(output)
    for path in files:
        if not os.path.exists(path):
            raise NequIPMDError(f"data file {path} does not exist; check the path")
        if output is not None and os.path.exists(output) and os.path.samefile(path, output):
            raise NequIPMDError(f"{os.fspath(output)} is a data file itself; give the predictions another name")
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise NequIPMDError(f"data file {twice} is given twice; give it once")
