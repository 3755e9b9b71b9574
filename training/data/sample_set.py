"""Data sets: samples of several sources in one order, with a table of facts that is known without reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from nequip_md.training.data.digest import combined_digest, data_digest
from nequip_md.training.data.samples import Sample, collate_arrays


@dataclass(frozen=True)
class FrameTable:
    """Facts of n frames, by which batches are planned and labels are counted without reading the frames.

    Attributes:
        num_atoms, num_edges: int64 [n].
        has_energy, has_forces, has_stress: whether the frame has the label, bool [n].
        weight: factor of the frame's part of the loss, float64 [n].
        largest_force: largest norm of a force on an atom, eV/angstrom, NaN without forces, float64 [n].
    """

    num_atoms: np.ndarray
    num_edges: np.ndarray
    has_energy: np.ndarray
    has_forces: np.ndarray
    has_stress: np.ndarray
    weight: np.ndarray
    largest_force: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[tuple]) -> FrameTable:
        """The table of some :func:`facts`."""
        types = (np.int64, np.int64, np.bool_, np.bool_, np.bool_, np.float64, np.float64)
        columns = zip(*rows, strict=True) if rows else [[] for _ in types]
        return cls(*(np.array(c, dtype=t) for c, t in zip(columns, types, strict=True)))

    @classmethod
    def joined(cls, tables: Sequence[FrameTable]) -> FrameTable:
        if not tables:
            return cls.from_rows([])
        return cls(*(np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.num_atoms)

    def take(self, rows: np.ndarray) -> FrameTable:
        return FrameTable(*(getattr(self, f.name)[rows] for f in fields(self)))

    def has(self, label: str) -> bool:
        """Whether any frame has the label ``energy``, ``forces`` or ``stress``."""
        return bool(getattr(self, f"has_{label}").any())


def facts(sample: Sample) -> tuple:
    """The row of a sample in a :class:`FrameTable`."""
    has = (bool(torch.isfinite(getattr(sample, name)).any()) for name in ("energy", "forces", "stress"))
    known = torch.isfinite(sample.forces).all(dim=1)
    largest = sample.forces[known].norm(dim=1).max().item() if known.any() else np.nan
    return (sample.graph.num_nodes, sample.graph.num_edges, *has, sample.weight.item(), largest)


class Source(Protocol):
    """Samples that lie in one place.

    Attributes:
        table: of its frames.
        in_memory: whether its samples are held in memory.
        digests: :func:`~nequip_md.training.data.digest.data_digest` of its frames, in their order.
    """

    table: FrameTable
    in_memory: bool

    @property
    def digests(self) -> dict[str, str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def reading(self) -> AbstractContextManager[Callable[[int], list[np.ndarray]]]:
        """A function from the number of a frame to the arrays of its sample, which are valid within the block."""

    def name(self, index: int) -> str:
        """Name of a frame for messages."""


@dataclass
class MemorySource:
    """Samples of a file, in memory.

    Attributes:
        atoms: the structures without labels, as the digests need them.
    """

    names: list[str] = field(default_factory=list)
    atoms: list[Atoms] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)
    in_memory: bool = True

    def append(self, name: str, atoms: Atoms, sample: Sample) -> None:
        self.names.append(name)
        self.atoms.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
        self.samples.append(sample)
        self.rows.append(facts(sample))

    @property
    def table(self) -> FrameTable:
        return FrameTable.from_rows(self.rows)

    @property
    def digests(self) -> dict[str, str]:
        return data_digest(self.atoms, self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def reading(self) -> AbstractContextManager[Callable[[int], list[np.ndarray]]]:
        return nullcontext(lambda index: self.samples[index].arrays)

    def name(self, index: int) -> str:
        return self.names[index]

    def labelled(self, index: int) -> Atoms:
        """A frame with its labels, in ASE's units, as ASE's results."""
        atoms, sample = self.atoms[index].copy(), self.samples[index]
        labels = {"energy": sample.energy[0], "forces": sample.forces, "stress": sample.stress[0]}
        known = {name: label.numpy() for name, label in labels.items() if torch.isfinite(label).any()}
        if "stress" in known:
            known["stress"] = full_3x3_to_voigt_6_stress(known["stress"])
        atoms.calc = SinglePointCalculator(atoms, **known)
        if sample.weight.item() != 1:
            atoms.info["config_weight"] = sample.weight.item()
        return atoms


class SampleSet(Sequence[Sample]):
    """Samples of some sources, all or some of them; the index in each sample is its place here.

    Attributes:
        sources: where the samples are.
        rows: places of the samples among those of all sources, int64 [n].
        table: of the samples.
    """

    def __init__(self, sources: Sequence[Source], rows: np.ndarray | None = None):
        """``rows`` None stands for all samples."""
        self.sources = sources
        sizes = np.array([len(s) for s in sources], dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        total = int(self._ends[-1]) if len(sources) else 0
        self.rows = np.arange(total) if rows is None else rows
        self._is_whole = len(self.rows) == total and bool((self.rows == np.arange(total)).all())
        tables = [s.table for s in sources]
        table = tables[0] if len(tables) == 1 else FrameTable.joined(tables)
        self.table = table if self._is_whole else table.take(self.rows)

    @property
    def in_memory(self) -> bool:
        return all(s.in_memory for s in self.sources)

    @property
    def num_bytes(self) -> int:
        """Memory that the samples take when they are read."""
        return int((40 * self.table.num_edges + 40 * self.table.num_atoms + 150).sum())

    @property
    def names(self) -> FrameNames:
        return FrameNames(self)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 by kind of value, see :mod:`~nequip_md.training.data.digest`."""
        if self.in_memory:
            places = [self._place(k) for k in range(len(self))]
            return data_digest([s.atoms[k] for s, k in places], list(self))
        if len(self.sources) == 1 and self._is_whole:
            return self.sources[0].digests
        return combined_digest([s.digests for s in self.sources], self.rows)

    def _place(self, index: int) -> tuple[Source, int]:
        row = int(self.rows[index])
        source = int(np.searchsorted(self._ends, row, side="right"))
        return self.sources[source], row - int(self._starts[source])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, and none with index {index}")
        index %= len(self)
        source, place = self._place(index)
        return replace(source[place], index=torch.tensor([index]))

    def batch(self, indices: Sequence[int]) -> Sample:
        """The batch that :func:`~nequip_md.training.data.samples.collate` gives for the samples with these indices."""
        rows = self.rows[np.asarray(indices)]
        numbers = np.searchsorted(self._ends, rows, side="right")
        places = rows - self._starts[numbers]
        with ExitStack() as stack:
            readers = {k: stack.enter_context(self.sources[k].reading()) for k in set(numbers.tolist())}
            arrays = [readers[k](place) for k, place in zip(numbers.tolist(), places.tolist())]
            for of_sample, index in zip(arrays, indices):
                of_sample[-1] = np.array([index])
            return collate_arrays(arrays)

    def __getitems__(self, indices: list[int]) -> Sample | list[Sample]:
        """The batch of these samples, for ``DataLoader``; an empty list of none."""
        return self.batch(indices) if indices else []

    def in_batches(self, size: int) -> Iterator[Sample]:
        """All samples in their order, so many together."""
        return (self.batch(range(k, min(k + size, len(self)))) for k in range(0, len(self), size))

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def subset(self, indices: np.ndarray) -> SampleSet:
        return SampleSet(self.sources, self.rows[indices])

    def name(self, index: int) -> str:
        """Name of a frame for messages, e.g. "frame 3 of train.extxyz"."""
        source, place = self._place(index)
        return source.name(place)

    def labelled(self, index: int) -> Atoms | None:
        """A frame with its labels as ASE's results; None if it lies in a store, which keeps graphs and no positions."""
        source, place = self._place(index)
        return source.labelled(place) if isinstance(source, MemorySource) else None


class FrameNames(Sequence[str]):
    """Names of the frames of a data set, made when they are asked for."""

    def __init__(self, samples: SampleSet):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} frames, and none with index {index}")
        return self._samples.name(index % len(self))
