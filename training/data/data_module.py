"""From files to data sets to batches.

Data in files are held in memory, their neighbour lists are made once, when they are read; those in a store
(:mod:`~nequip_md.training.data.store`) are read when they are needed.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import lightning as L
import numpy as np
import torch
from ase import Atoms
from torch.utils.data import DataLoader

from nequip_md.errors import NequIPMDError
from nequip_md.model.config import PotentialConfig
from nequip_md.training.config import DataConfig
from nequip_md.training.data.batches import Batches
from nequip_md.training.data.label_counts import LabelCounter, LabelCounts, log_label_table
from nequip_md.training.data.labels import Labels, with_labels
from nequip_md.training.data.sample_set import MemorySource, SampleSet, Source
from nequip_md.training.data.samples import (
    GraphOptions,
    Sample,
    batch_of,
    collate,
    labelled_frames,
    make_sample,
    read_samples,
    without_labels,
)
from nequip_md.training.data.stacked import StackedSamples
from nequip_md.training.data.store import GraphStore, is_store
from nequip_md.training.parallel import Processes

__all__ = ["AtomsData", "Labels", "Sample", "collate", "make_sample", "split"]

log = logging.getLogger(__name__)

MOST_WORKERS = 4
"""Processes that read a store, unless the training file says how many."""


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
    """Training, validation and test samples of a training file.

    Attributes:
        train, validation, test: samples; ``test`` is empty where the file names none.
        names: of the frames of each of the three, in the same order, e.g. "frame 3 of train.extxyz".
        digests: :func:`~nequip_md.training.data.digest.data_digest` of each of the three.
        isolated_atoms: frames of isolated atoms with ASE's names and units: those of ``data.isolated_atoms`` and those
            that are marked as such in other files.
        counts: labels of each file.
        batches: of the training and validation data, by ``train`` and ``validation``, once there are loaders.
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
        self.options = GraphOptions.from_potential(potential)
        self.labels = Labels.from_config(config)
        self.counts: list[LabelCounts] = []
        self.batches: dict[str, Batches] = {}
        self.isolated_atoms: list[tuple[str, Atoms]] = []
        for path in config.isolated_atoms or []:
            self.isolated_atoms += [(n, with_labels(a, found)) for n, a, found in labelled_frames(path, self.labels)]
        started = time.perf_counter()
        given = self._read("train", config.train)
        rest, validation, test = split(len(given), [config.validation_split, config.test_split], config.split_seed)
        self.train = given.subset(rest)
        self.validation = self._read("validation", config.validation) if config.validation else given.subset(validation)
        self.test = self._read("test", config.test) if config.test else given.subset(test)
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        self.names = {key: samples.names for key, samples in sets.items()}
        self.digests = {key: samples.digests for key, samples in sets.items()}
        log_label_table(self.counts)
        for name, samples in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            atoms, edges = samples.table.num_atoms.sum(), samples.table.num_edges.sum()
            log.info("%s data: %d frames, %d atoms, %d edges", name, len(samples), atoms, edges)
        weights = self.train.table.weight
        if (weights != 1).any():
            log.info("weights of the training frames (%s): %g to %g", self.labels.weight, weights.min(), weights.max())
        log.info("read and built neighbour lists in %.1f s", time.perf_counter() - started)
        self._require_labels()

    def _read(self, role: str, paths: Sequence[str]) -> SampleSet:
        """The samples of some files. Isolated atoms go to ``isolated_atoms``."""
        return SampleSet([self._source(role, path) for path in paths])

    def _source(self, role: str, path: str) -> Source:
        if is_store(path):
            store = GraphStore(path)
            store.require(self.options, self.labels)
            self.isolated_atoms += store.isolated_atoms
            self.counts.append(store.counts(role))
            return store
        source, counter = MemorySource(), LabelCounter(role, path, self.labels)
        for name, atoms, sample in read_samples(path, self.labels, self.options, counter, self.isolated_atoms):
            source.append(name, atoms, sample)
        self.counts.append(counter.result())
        return source

    def _require_labels(self) -> None:
        for name in ("train", "validation", "test"):
            samples = getattr(self, name)
            if not samples and name == "validation":
                raise NequIPMDError("the validation data holds isolated atoms only; give frames to validate on")
            if samples and not any(samples.table.has(label) for label in ("energy", "forces", "stress")):
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
        return self.train.table.has(label)

    def train_dataloader(self) -> DataLoader:
        c = self.config
        loader = self._loader(
            self.train, c.frames_in_batch, c.max_atoms, c.max_edges, seed=self.seed, passes=c.passes_per_epoch
        )
        self.batches["train"] = loader.batch_sampler
        if self.trainer is not None:  # workers begin to read before Lightning tells a resumed run's epoch
            loops = self.trainer.fit_loop
            epoch = loops.epoch_progress.current.processed
            loader.batch_sampler.set_epoch(epoch)
            if loops.epoch_progress.current.ready > epoch:  # resumed within an epoch
                loader.batch_sampler.leave_out(loops.epoch_loop.batch_progress.current.ready, epoch)
        return loader

    def val_dataloader(self) -> DataLoader:
        loader = self._loader(self.validation, self.config.evaluation_batch_size or self.config.batch_size)
        self.batches["validation"] = loader.batch_sampler
        return loader

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.config.evaluation_batch_size or self.config.batch_size)

    def _loader(self, samples: SampleSet, *limits: int | None, seed: int | None = None, passes: int = 1) -> DataLoader:
        """Batches of this process, with at most so many frames, atoms and edges."""
        processes = Processes.of_this_run()
        table = samples.table
        batches = Batches(
            table.num_atoms,
            table.num_edges,
            limits,
            seed=seed,
            passes=passes,
            process=processes.rank,
            processes=processes.size,
        )
        placed = self._placed(samples)
        # samples that are on the device already cannot be sent to other processes
        on_device, workers = placed is not samples, self.config.workers
        if workers is None and not on_device and not samples.in_memory:
            workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        workers = 0 if on_device else workers or 0
        to_gpu = self._device.type == "cuda" and not on_device
        # a generator of its own: a loader draws a seed for its workers each time, even when it has none
        return DataLoader(
            placed,
            batch_sampler=batches,
            collate_fn=partial(batch_of, otherwise=without_labels(placed[0])),
            generator=torch.Generator(),
            num_workers=workers,
            pin_memory=to_gpu,  # so that the program does not wait for the copy of a batch
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals if workers else None,
        )

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _placed(self, samples: SampleSet) -> Sequence[Sample]:
        """The samples on the training device, where they are to be kept there."""
        device, keep = self._device, self.config.keep_on_device
        if device.type == "cpu" or keep is False:
            return samples
        if keep == "auto" and samples.num_bytes > torch.cuda.mem_get_info(device)[0] // 4:
            return samples
        return StackedSamples(samples, device)


def _leave_signals(_: int) -> None:
    """Leave Ctrl-C and SIGTERM, which schedulers send to all processes of a job, to the main process: it says what was
    saved, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
