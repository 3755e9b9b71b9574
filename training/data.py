"""From files to labelled graphs to batches.

A data set is any sequence of :class:`Sample` (here a list in memory); neighbour lists are made once, when it is read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import ase.io
import lightning as L
import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from torch.utils.data import DataLoader

from nequip_md.errors import NequIPMDError
from nequip_md.graph import Graph, Structure, batch_graphs, build_graph, build_graphs
from nequip_md.model.config import PotentialConfig
from nequip_md.training.batches import Batches
from nequip_md.training.config import DataConfig
from nequip_md.training.digest import data_digest
from nequip_md.training.label_counts import LabelCounts, count_labels, log_label_table
from nequip_md.training.labels import FrameLabels, Labels, is_isolated_atom
from nequip_md.training.parallel import Processes

log = logging.getLogger(__name__)

MIN_DISTANCE = 0.1
"""Angstrom; atoms that are closer are taken for an error in the data (at distance 0 a model gives no number)."""


@dataclass(frozen=True)
class Sample:
    """Structures with their labels: one, or a batch of B of them. A label that the data lacks is NaN.

    Attributes:
        graph: N atoms in all.
        energy: eV, float64 [B].
        forces: eV/angstrom, float64 [N, 3].
        stress: eV/angstrom^3, positive under tension, float64 [B, 3, 3].
        volume: angstrom^3, infinite for structures whose cell has none, float64 [B].
        weight: factor of each structure's part of the loss, float64 [B].
        index: of each structure in its data set, int64 [B].
    """

    graph: Graph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    volume: Tensor
    weight: Tensor
    index: Tensor

    @property
    def num_atoms(self) -> Tensor:
        """Atoms of each structure, int64 [B]."""
        return self.graph.graph_ptr.diff()

    @property
    def num_bytes(self) -> int:
        labels = [getattr(self, f.name) for f in fields(self) if f.name != "graph"]
        return sum(t.numel() * t.element_size() for t in (*self.graph.tensors, *labels))

    def to(self, device: torch.device | str, **_) -> Sample:
        return Sample(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch of several samples, on the device that they are on."""
    labels = {f.name: torch.cat([getattr(s, f.name) for s in samples]) for f in fields(Sample) if f.name != "graph"}
    return Sample(graph=batch_graphs([s.graph for s in samples]), **labels)


def without_labels(sample: Sample) -> Sample:
    """The same structures without labels: what a process takes that has no frames in a step, as it adds nothing to the loss."""
    labels = {name: torch.full_like(getattr(sample, name), torch.nan) for name in ("energy", "forces", "stress")}
    return replace(sample, **labels)


def make_sample(
    atoms: Atoms, config: PotentialConfig, labels: Labels | FrameLabels | None = None, index: int = 0
) -> Sample:
    """The graph of a frame with its labels.

    Args:
        labels: the labels, or the names to look for; by default those of :class:`Labels`.
        index: of the frame in its data set.

    Raises:
        NequIPMDError: a label that is refused (see :meth:`Labels.of`), an element that the model lacks, a bad cell, two
            atoms at one place.
    """
    found = labels if isinstance(labels, FrameLabels) else (labels or Labels()).of(atoms)
    structure = Structure.from_ase(atoms, config.type_names)
    return _labelled(structure, build_graph(structure, config.cutoff_matrix()), found, index)


def _labelled(structure: Structure, graph: Graph, labels: FrameLabels, index: int = 0) -> Sample:
    """The graph of a structure with its labels.

    Raises:
        NequIPMDError: two atoms at one place.
    """
    _refuse_coincident_atoms(graph)
    volume = structure.volume

    def tensor(value, *shape: int) -> Tensor:
        value = np.full(shape, np.nan) if value is None else np.array(value, dtype=np.float64).reshape(shape)
        return torch.from_numpy(value)

    return Sample(
        graph=graph,
        energy=tensor(labels.energy, 1),
        forces=tensor(labels.forces, structure.num_atoms, 3),
        stress=tensor(labels.stress, 1, 3, 3),
        volume=tensor(np.inf if volume is None else volume, 1),
        weight=tensor(labels.weight, 1),
        index=torch.tensor([index]),
    )


def _refuse_coincident_atoms(graph: Graph) -> None:
    if graph.num_edges == 0:
        return
    lengths = graph.edge_vectors.norm(dim=1)
    closest = int(lengths.argmin())
    if lengths[closest] < MIN_DISTANCE:
        i, j = graph.edge_index[:, closest].tolist()
        raise NequIPMDError(
            f"atoms {i} and {j} are {lengths[closest]:.3g} Å apart (periodic images counted); leave the frame out or"
            " correct its positions and cell"
        )


def read_frames(paths: Sequence[str]) -> list[tuple[str, Atoms]]:
    """Every frame of some files, each with a name for error messages.

    Raises:
        NequIPMDError: a file that does not exist, that ASE cannot read, or that holds no frame.
    """
    frames = []
    for path in paths:
        try:
            content = ase.io.read(path, ":")
        except FileNotFoundError:
            raise NequIPMDError(
                f"data file {path} does not exist; relative paths start at the folder of the training file"
            ) from None
        except Exception as error:  # ASE's readers raise whatever their parsing meets
            raise NequIPMDError(f"ASE cannot read the data file {path}: {type(error).__name__}: {error}") from None
        if not content:
            raise NequIPMDError(f"data file {path} holds no frame")
        frames += [(f"frame {k} of {path}", atoms) for k, atoms in enumerate(content)]
    return frames


@contextmanager
def _naming(frame: str) -> Iterator[None]:
    """Errors begin with the name of the frame."""
    try:
        yield
    except NequIPMDError as error:
        raise NequIPMDError(f"{frame}: {error}") from None


def split(count: int, parts: Sequence[float | None], seed: int) -> list[np.ndarray]:
    """Ascending indices of the frames that remain, and of each part, drawn without replacement.

    Args:
        parts: a fraction below 1, a number of frames, or None for an empty part.

    Raises:
        NequIPMDError: a part without a frame, or no frame that remains.
    """
    sizes = [0 if p is None else round(p * count) if p < 1 else int(p) for p in parts]
    for part, size in zip(parts, sizes, strict=True):
        if part is not None and size == 0:
            raise NequIPMDError(f"a split of {part} of {count} training frames holds no frame; ask for more")
    if sum(sizes) >= count:
        raise NequIPMDError(
            f"the splits take {sum(sizes)} of {count} training frames and leave none to train on; ask for less"
        )
    order = np.random.default_rng(seed).permutation(count)
    ends = np.cumsum([0, *sizes])
    chosen = [np.sort(order[a:b]) for a, b in pairwise(ends)]
    return [np.sort(order[ends[-1] :]), *chosen]


class AtomsData(L.LightningDataModule):
    """Training, validation and test samples of a training file, in memory.

    Attributes:
        train, validation, test: samples; ``test`` is empty where the file names none.
        names: of the frames of each of the three, in the same order, e.g. "frame 3 of train.extxyz".
        digests: :func:`~nequip_md.training.digest.data_digest` of each of the three.
        isolated_atoms: frames of isolated atoms: those of ``data.isolated_atoms`` and those that are marked as such in
            other files.
        counts: labels of each file.
    """

    def __init__(self, config: DataConfig, potential: PotentialConfig, seed: int = 0):
        """
        Args:
            potential: its types and cutoffs are used.
            seed: of the order of the training frames.

        Raises:
            NequIPMDError: a file or frame that cannot be used, or a split that is too large.
        """
        super().__init__()
        self.config, self.seed, self.potential = config, seed, potential
        self.labels = Labels.from_config(config)
        self.counts: list[LabelCounts] = []
        self.isolated_atoms = read_frames(config.isolated_atoms) if config.isolated_atoms else []
        started = time.perf_counter()
        given = self._read("train", config.train)
        rest, validation, test = split(len(given), [config.validation_split, config.test_split], config.split_seed)
        sets = {
            "train": [given[k] for k in rest],
            "validation": self._read("validation", config.validation or []) or [given[k] for k in validation],
            "test": self._read("test", config.test or []) or [given[k] for k in test],
        }
        self.names = {key: [name for name, _, _ in frames] for key, frames in sets.items()}
        self.train, self.validation, self.test = (
            [replace(sample, index=torch.tensor([k])) for k, (_, _, sample) in enumerate(frames)]
            for frames in sets.values()
        )
        self.digests = {key: data_digest([a for _, a, _ in frames], getattr(self, key)) for key, frames in sets.items()}
        log_label_table(self.counts)
        for name, samples in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            atoms, edges = (sum(getattr(s.graph, k) for s in samples) for k in ("num_nodes", "num_edges"))
            log.info("%s data: %d frames, %d atoms, %d edges", name, len(samples), atoms, edges)
        weights = torch.cat([s.weight for s in self.train])
        if (weights != 1).any():
            log.info("weights of the training frames (%s): %g to %g", self.labels.weight, weights.min(), weights.max())
        log.info("read and built neighbour lists in %.1f s", time.perf_counter() - started)
        self._require_labels()

    def _read(self, role: str, paths: Sequence[str]) -> list[tuple[str, Atoms, Sample]]:
        """Each frame of some files: its name, itself, its sample. Isolated atoms go to ``isolated_atoms``."""
        result = []
        for path in paths:
            frames = read_frames([path])
            isolated = [f for f in frames if is_isolated_atom(f[1])]
            frames = [f for f in frames if not is_isolated_atom(f[1])]
            self.isolated_atoms += isolated
            labels, structures = [], []
            for name, atoms in frames:
                with _naming(name):
                    labels.append(self.labels.of(atoms))
                    structures.append(Structure.from_ase(atoms, self.potential.type_names))
            graphs = self._graphs([name for name, _ in frames], structures)
            for (name, atoms), *parts in zip(frames, structures, graphs, labels):
                with _naming(name):
                    result.append((name, atoms, _labelled(*parts)))
            self.counts.append(count_labels(role, path, [a for _, a in frames], labels, self.labels, len(isolated)))
        return result

    def _graphs(self, names: Sequence[str], structures: Sequence[Structure]) -> list[Graph]:
        cutoffs = self.potential.cutoff_matrix()
        try:
            return build_graphs(structures, cutoffs)
        except NequIPMDError:
            for name, structure in zip(names, structures):  # the error of a search of many does not name the frame
                with _naming(name):
                    build_graph(structure, cutoffs)
            raise

    def _require_labels(self) -> None:
        for name in ("train", "validation", "test"):
            samples = getattr(self, name)
            if not samples and name == "validation":
                raise NequIPMDError("the validation data holds isolated atoms only; give frames to validate on")
            if samples and not any(torch.isfinite(t).any() for s in samples for t in (s.energy, s.forces, s.stress)):
                raise NequIPMDError(
                    f"no frame of the {name} data has an energy, forces or a stress that can be used; if the file has"
                    f" names of its own for them, give them in data.energy_key, data.force_key and data.stress_key or"
                    f" data.virial_key. {self.describe_files(name)}"
                )

    def describe_files(self, role: str = "train") -> str:
        """The names that the files of ``train``, ``validation`` or ``test`` hold, for messages."""
        own = [c for c in self.counts if c.role == role]
        return "; ".join(f"{c.path} has {c.names}" for c in own or self.counts)

    def require(self, label: str, weight: float) -> None:
        """Refuse a loss of ``energy``, ``forces`` or ``stress`` without a training frame that has it.

        Raises:
            NequIPMDError: the weight in the loss is above 0, but there is no such label.
        """
        if weight == 0 or self.has(label):
            return
        key = label.removesuffix("s") if label == "forces" else label
        unused = sum(c.unused_stress for c in self.counts if c.role == "train") if label == "stress" else 0
        reason = (
            f"{unused} frames have one, but their cells have no volume (three vectors that are not coplanar)"
            if unused
            else f"or name it in data.{key}_key{' or data.virial_key' * (label == 'stress')}. {self.describe_files()}"
        )
        what = f"no training frame has {'a stress that can be used' if unused else label}"
        raise NequIPMDError(f"loss.{key} is {weight}, but {what}; set it to 0{': ' if unused else ' '}{reason}")

    def has(self, label: str) -> bool:
        """Whether any training frame has the label ``energy``, ``forces`` or ``stress``."""
        return any(bool(torch.isfinite(getattr(s, label)).any()) for s in self.train)

    def train_dataloader(self) -> DataLoader:
        c = self.config
        return self._loader(self.train, c.frames_in_batch, c.max_atoms, c.max_edges, seed=self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.validation, self.config.evaluation_batch_size or self.config.batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.config.evaluation_batch_size or self.config.batch_size)

    def _loader(self, samples: list[Sample], *limits: int | None, seed: int | None = None) -> DataLoader:
        processes = Processes.of_this_run()
        atoms, edges = ([getattr(s.graph, k) for s in samples] for k in ("num_nodes", "num_edges"))
        batches = Batches(atoms, edges, limits, seed=seed, process=processes.rank, processes=processes.size)
        placed = self._placed(samples)

        def batch(chosen: list[Sample]) -> Sample:
            return collate(chosen) if chosen else without_labels(placed[0])

        # a generator of its own: a loader draws a seed for its workers each time, even when it has none
        return DataLoader(placed, batch_sampler=batches, collate_fn=batch, generator=torch.Generator())

    def _placed(self, samples: list[Sample]) -> list[Sample]:
        """The samples on the training device, where they are to be kept there."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        keep = self.config.keep_on_device
        if device.type == "cpu" or keep is False:
            return samples
        if keep == "auto" and sum(s.num_bytes for s in samples) > torch.cuda.mem_get_info(device)[0] // 4:
            return samples
        return [s.to(device) for s in samples]
