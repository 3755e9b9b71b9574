"""From files to labelled graphs to batches.

A data set is any sequence of :class:`Sample` (here a list in memory); neighbour lists are made once, when it is read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import ase.io
import lightning as L
import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from nequip_md.errors import NequIPMDError
from nequip_md.graph import Graph, batch_graphs, build_graph
from nequip_md.model.config import PotentialConfig
from nequip_md.training.config import DataConfig
from nequip_md.training.digest import data_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Structures with their labels: one, or a batch of B of them. A label that the data lacks is NaN.

    Attributes:
        graph: N atoms in all.
        energy: eV, float64 [B].
        forces: eV/angstrom, float64 [N, 3].
        stress: eV/angstrom^3, positive under tension, float64 [B, 3, 3].
        volume: angstrom^3, infinite for structures that are not periodic in three directions, float64 [B].
    """

    graph: Graph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    volume: Tensor

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


@dataclass(frozen=True)
class Labels:
    """Names of the labels in ``Atoms.info`` and ``Atoms.arrays``; None means the results that ASE has found."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None

    def of(self, atoms: Atoms) -> tuple[float | None, np.ndarray | None, np.ndarray | None]:
        """Energy, forces [N, 3] and stress [3, 3] of a frame, None where it has none.

        Raises:
            NequIPMDError: a label of another shape.
        """
        results = atoms.calc.results if atoms.calc is not None else {}
        energy = results.get("energy") if self.energy is None else atoms.info.get(self.energy)
        forces = results.get("forces") if self.forces is None else atoms.arrays.get(self.forces)
        stress = results.get("stress") if self.stress is None else atoms.info.get(self.stress)
        if energy is not None and np.size(energy) != 1:
            raise NequIPMDError(f"its energy is not one number but {energy!r}")
        if forces is not None and np.shape(forces) != (len(atoms), 3):
            raise NequIPMDError(f"its forces have shape {np.shape(forces)}; {len(atoms)} atoms need {(len(atoms), 3)}")
        if stress is not None:
            stress = np.asarray(stress, dtype=np.float64)
            if stress.size not in (6, 9):
                raise NequIPMDError(f"its stress has {stress.size} components; it needs 6 (xx yy zz yz xz xy) or 9")
            stress = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
        return None if energy is None else float(np.squeeze(energy)), forces, stress


def make_sample(atoms: Atoms, config: PotentialConfig, labels: Labels = Labels()) -> Sample:
    """The graph of a frame with its labels.

    Raises:
        NequIPMDError: a label that is not finite or has another shape, an element that the model lacks, a bad cell.
    """
    energy, forces, stress = labels.of(atoms)
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            raise NequIPMDError(f"a value of its {name} is not finite; leave the frame out")
    periodic = bool(atoms.pbc.all())

    def tensor(value, *shape: int) -> Tensor:
        value = np.full(shape, np.nan) if value is None else np.array(value, dtype=np.float64).reshape(shape)
        return torch.from_numpy(value)

    return Sample(
        graph=build_graph(atoms, config.type_names, config.cutoff_matrix()),
        energy=tensor(energy, 1),
        forces=tensor(forces, len(atoms), 3),
        stress=tensor(stress if periodic else None, 1, 3, 3),
        volume=tensor(atoms.get_volume() if periodic else np.inf, 1),
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


def make_samples(frames: Sequence[tuple[str, Atoms]], config: PotentialConfig, labels: Labels) -> list[Sample]:
    """:func:`make_sample` of each frame; errors name the frame."""
    samples = []
    for name, atoms in frames:
        try:
            samples.append(make_sample(atoms, config, labels))
        except NequIPMDError as error:
            raise NequIPMDError(f"{name}: {error}") from None
    return samples


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


class EpochSampler(Sampler[int]):
    """A new order in each epoch; seed and epoch alone determine it, so that a resumed run continues exactly."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning as an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist())

    def __len__(self) -> int:
        return self.count


class AtomsData(L.LightningDataModule):
    """Training, validation and test samples of a training file, in memory.

    Attributes:
        train, validation, test: samples; ``test`` is empty where the file names none.
        isolated_atoms: frames of the isolated atoms, empty where the file names none.
        digests: :func:`~nequip_md.training.digest.data_digest` of ``train``, ``validation`` and ``test``.
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
        self.config, self.seed = config, seed
        started = time.perf_counter()
        labels = Labels(config.energy_key, config.force_key, config.stress_key)
        frames = {"train": read_frames(config.train)}
        rest, validation, test = split(
            len(frames["train"]), [config.validation_split, config.test_split], config.split_seed
        )
        frames["validation"] = (
            read_frames(config.validation) if config.validation else [frames["train"][k] for k in validation]
        )
        frames["test"] = read_frames(config.test) if config.test else [frames["train"][k] for k in test]
        frames["train"] = [frames["train"][k] for k in rest]
        self.train, self.validation, self.test = (
            make_samples(frames[k], potential, labels) for k in ("train", "validation", "test")
        )
        self.digests = {k: data_digest([a for _, a in frames[k]], getattr(self, k)) for k in frames}
        self.isolated_atoms = read_frames(config.isolated_atoms) if config.isolated_atoms else []
        for name, samples in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            atoms, edges = (sum(getattr(s.graph, k) for s in samples) for k in ("num_nodes", "num_edges"))
            log.info("%s data: %d frames, %d atoms, %d edges", name, len(samples), atoms, edges)
        log.info("read and built neighbour lists in %.1f s", time.perf_counter() - started)
        self._require_labels()

    def _require_labels(self) -> None:
        for name in ("train", "validation", "test"):
            samples = getattr(self, name)
            if samples and not any(torch.isfinite(t).any() for s in samples for t in (s.energy, s.forces, s.stress)):
                keys = {k: getattr(self.config, k) for k in ("energy_key", "force_key", "stress_key")}
                raise NequIPMDError(
                    f"no frame of the {name} data has an energy, forces or a stress; if the file has names of its own"
                    f" for them, say so in data.energy_key, data.force_key and data.stress_key (now {keys})"
                )

    def has(self, label: str) -> bool:
        """Whether any training frame has the label ``energy``, ``forces`` or ``stress``."""
        return any(bool(torch.isfinite(getattr(s, label)).any()) for s in self.train)

    def train_dataloader(self) -> DataLoader:
        samples = self._placed(self.train)
        return self._loader(samples, self.config.batch_size, EpochSampler(len(samples), self.seed))

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._placed(self.validation), self.config.evaluation_batch_size or self.config.batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self._placed(self.test), self.config.evaluation_batch_size or self.config.batch_size)

    @staticmethod
    def _loader(samples: Sequence[Sample], batch_size: int, sampler: Sampler | None = None) -> DataLoader:
        # a generator of its own: a loader draws a seed for its workers each time, even when it has none
        return DataLoader(samples, batch_size, sampler=sampler, collate_fn=collate, generator=torch.Generator())

    def _placed(self, samples: list[Sample]) -> list[Sample]:
        """The samples on the training device, where they are to be kept there."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        keep = self.config.keep_on_device
        if device.type == "cpu" or keep is False:
            return samples
        if keep == "auto" and sum(s.num_bytes for s in samples) > torch.cuda.mem_get_info(device)[0] // 4:
            return samples
        return [s.to(device) for s in samples]
