"""The parts of :func:`~nequip_md.training.evaluation.evaluate.evaluate_model`: model, frames, predictions, summary."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from nequip_md.artifact import load_artifact
from nequip_md.atomic import replacing
from nequip_md.checkpoint import load
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, file_kind
from nequip_md.graph import Graph
from nequip_md.memory import keep_freed_memory
from nequip_md.model import energy_and_gradient
from nequip_md.training.config import load_config
from nequip_md.training.data.labels import FrameLabels, Labels, describe_names, is_isolated_atom
from nequip_md.training.data.samples import Sample, collate, labelled_frames, make_sample
from nequip_md.training.data.store_format import SUFFIX
from nequip_md.training.evaluation.error_groups import (
    errors_by_label,
    force_errors_by_size,
    force_errors_by_type,
    group_errors,
    worst_frames,
)
from nequip_md.training.evaluation.evaluate import Evaluation, Names
from nequip_md.training.evaluation.predictions import PredictionCollector, Predictions
from nequip_md.training.steps.loss import Prediction, prediction_from

log = logging.getLogger(__name__)

DEFAULT_GROUP_KEY = "config_type"


@dataclass(frozen=True)
class Evaluator:
    """A checkpoint's model or an artifact, with what graphs for it are built from.

    Attributes:
        type_names: of the model.
        cutoffs: of each ordered pair ``[centre][neighbour]``, angstrom.
        device: where graphs must lie.
        function: gives energies of the atoms and the gradient by the edges of a graph.
    """

    type_names: Sequence[str]
    cutoffs: Any
    device: torch.device
    function: Callable[[Graph], tuple[Tensor, Tensor]]

    def cutoff_matrix(self) -> Any:
        return self.cutoffs

    def predict(self, batch: Sample) -> Prediction:
        """Energies, forces and stresses of a batch on ``device``."""
        return prediction_from(batch, *self.function(batch.graph), with_stress=True)


def load_evaluator(path: Path, device: str | None, allow_pickle: bool) -> Evaluator:
    """The model of a file, ready to evaluate.

    Args:
        device: ``cpu`` or ``cuda``; None means the artifact's device, for checkpoints a GPU if there is one.

    Raises:
        NequIPMDError: not a model, damaged, or it cannot run on the device.
    """
    if device not in (None, "cpu", "cuda"):
        raise NequIPMDError(f"device is {device!r}; give cpu or cuda")
    keep_freed_memory()
    if file_kind(path) is FileKind.ARTIFACT:
        artifact = load_artifact(path, device=device)
        return Evaluator(artifact.type_names, artifact.pair_cutoffs.numpy(), artifact.device, artifact)
    if device == "cuda" and not torch.cuda.is_available():
        raise NequIPMDError("device is 'cuda', but this machine has no CUDA device that PyTorch can use; use 'cpu'")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load(path, allow_pickle=allow_pickle).to(target)
    return Evaluator(
        model.config.type_names,
        model.config.cutoff_matrix(),
        target,
        lambda graph: energy_and_gradient(model, *graph.tensors),
    )


@dataclass(frozen=True)
class LabelledFrames:
    """Structures of some files with their labels, without isolated atoms.

    Attributes:
        atoms: the structures.
        labels: of each.
        files: that each is in.
        indices: of each in its file.
        groups: value of ``group_key`` of each.
        group_key: key in ``Atoms.info``; frames are not grouped if none has it.
        isolated_atoms: number of frames that were left out.
    """

    atoms: list[Atoms]
    labels: list[FrameLabels]
    files: list[str]
    indices: list[int]
    groups: list[str]
    group_key: str
    isolated_atoms: int

    def name(self, k: int) -> str:
        return f"frame {self.indices[k]} of {self.files[k]}"

    @property
    def grouped(self) -> bool:
        return any(self.group_key in a.info for a in self.atoms)


def labels_of(names: Sequence[Names], train_file: str | os.PathLike | None) -> Labels:
    """The names and units of the labels to look for in the frames.

    Args:
        names: of the labels: energy, forces, stress, virial.
        train_file: a training file that gives names and units instead.

    Raises:
        NequIPMDError: both are given, or the training file is refused.
    """
    if train_file is None:
        energy, force, stress, virial = names
        return Labels(energy=energy, forces=force, stress=stress, virial=virial)
    if any(name is not None for name in names):
        raise NequIPMDError("the training file gives the names of the labels; leave train_file or the names out")
    return Labels.from_config(load_config(train_file).data)


def read_data(paths: Sequence[str], wanted: Labels, group_key: str | None) -> LabelledFrames:
    """Read structures and labels.

    Args:
        wanted: what to look for, see :func:`labels_of`.
        group_key: key in ``Atoms.info`` that some frame must have; None means ``config_type``, which none needs to have.

    Raises:
        NequIPMDError: a file or a label that cannot be used, or no frame with ``group_key``.
    """
    for path in paths:
        if path.endswith(SUFFIX):
            raise NequIPMDError(
                f"{path} is a store of graphs, which has no positions; give the files that it was made from"
            )
    atoms, labels, files, indices, isolated = [], [], [], [], 0
    for path in paths:
        for k, (name, frame, found) in enumerate(labelled_frames(path, wanted)):
            if is_isolated_atom(frame):
                isolated += 1
                continue
            if len(frame) == 0:
                raise NequIPMDError(f"{name}: it has no atom; leave the frame out")
            atoms.append(frame)
            labels.append(found)
            files.append(path)
            indices.append(k)
    if not atoms:
        raise NequIPMDError(
            f"{', '.join(paths)}: all frames are isolated atoms (config_type=IsolatedAtom), which are left out as in"
            " training; give frames of another config_type"
        )
    if isolated:
        log.info("%d frames of isolated atoms (config_type=IsolatedAtom) are left out, as in training", isolated)
    key = group_key or DEFAULT_GROUP_KEY
    frames = LabelledFrames(atoms, labels, files, indices, [str(a.info.get(key, "")) for a in atoms], key, isolated)
    if group_key is not None and not frames.grouped:
        present = sorted({k for a in atoms for k in a.info})
        raise NequIPMDError(f"no frame has {group_key} to group by; the frames have {', '.join(present) or 'no keys'}")
    return frames


def predict_frames(
    evaluator: Evaluator,
    frames: LabelledFrames,
    batch_size: int,
    output: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Predict all frames, and write them with their predictions if ``output`` names a file.

    Raises:
        NequIPMDError: see :func:`~nequip_md.training.evaluation.evaluate.evaluate_model`.
    """
    if output is None and all(label.energy is label.forces is label.stress is None for label in frames.labels):
        raise NequIPMDError(
            "no frame has an energy, forces or a stress to compare with; if the files have names of their own for"
            f" them, give them (--energy-key, --force-key, --stress-key, --virial-key). The frames have"
            f" {describe_names(frames.atoms)}"
        )
    collector = PredictionCollector(evaluator.type_names)
    total = len(frames.atoms)
    with replacing(output) if output is not None else nullcontext() as file:
        for start in range(0, total, batch_size):
            chosen = range(start, min(start + batch_size, total))
            batch = collate([_sample(evaluator, frames, k) for k in chosen]).to(evaluator.device)
            prediction = evaluator.predict(batch)
            _require_finite(prediction, batch, frames)
            collector.add(prediction, batch)
            if file is not None:
                ase.io.write(file, _with_predictions(frames, prediction, batch), format="extxyz", append=True)
            if progress is not None:
                progress(chosen.stop, total)
    return collector.finish()


def _sample(evaluator: Evaluator, frames: LabelledFrames, k: int) -> Sample:
    try:
        return make_sample(frames.atoms[k], evaluator, frames.labels[k], k)
    except NequIPMDError as error:
        raise NequIPMDError(f"{frames.name(k)}: {error}") from None


def _require_finite(prediction: Prediction, batch: Sample, frames: LabelledFrames) -> None:
    forces = prediction.forces.split(batch.num_atoms.tolist())
    for k, energy, force in zip(batch.index.tolist(), prediction.energy, forces, strict=True):
        if not (torch.isfinite(energy) and torch.isfinite(force).all()):
            raise NequIPMDError(
                f"{frames.name(k)}: the model gives an energy or a force that is not finite; atoms may be too close,"
                " leave the frame out or correct it"
            )


def _with_predictions(frames: LabelledFrames, prediction: Prediction, batch: Sample) -> list[Atoms]:
    """Copies of a batch's frames that hold predictions beside the labels."""
    written = []
    forces = prediction.forces.detach().cpu().split(batch.num_atoms.tolist())
    stresses, volumes = prediction.stress.detach().cpu().numpy(), batch.volume.tolist()
    for j, k in enumerate(batch.index.tolist()):
        atoms = frames.atoms[k].copy()
        atoms.calc = frames.atoms[k].calc  # holds labels that have ASE's own names
        atoms.info["nequip_md_energy"] = float(prediction.energy[j])
        atoms.arrays["nequip_md_forces"] = forces[j].numpy()
        if np.isfinite(volumes[j]):
            atoms.info["nequip_md_stress"] = stresses[j]
        written.append(atoms)
    return written


def summarize(model: str, predictions: Predictions, frames: LabelledFrames, worst: int) -> Evaluation:
    """Errors over all frames and by groups; the frames with the largest errors are named by file and index."""

    def named(found: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"file": frames.files[k], "index": frames.indices[k], "error": error} for k, error in found]

    return Evaluation(
        model=model,
        frames=predictions.num_frames,
        atoms=int(predictions.num_atoms.sum()),
        isolated_atoms=frames.isolated_atoms,
        all=group_errors(predictions),
        by_file=errors_by_label(predictions, frames.files),
        by_group=errors_by_label(predictions, frames.groups) if frames.grouped else {},
        group_key=frames.group_key,
        by_element=force_errors_by_type(predictions),
        by_force=force_errors_by_size(predictions),
        worst={name: named(found) for name, found in worst_frames(predictions, worst).items()},
    )
