"""Labelled graphs: one of each frame, batches of them, and all of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from nequip_md.errors import NequIPMDError
from nequip_md.graph import Graph, Structure, build_graph, build_graphs
from nequip_md.model.config import PotentialConfig
from nequip_md.training.data import readers
from nequip_md.training.data.buffers import Layout, joined
from nequip_md.training.data.label_counts import LabelCounter
from nequip_md.training.data.labels import FrameLabels, Labels, is_isolated_atom, with_labels
from nequip_md.training.data.readers import RawFrame
from nequip_md.training.data.units import ASE_UNITS

MIN_DISTANCE = 0.1
"""Angstrom; atoms that are closer are taken for an error in the data (at distance 0 a model gives no number)."""

_GROUP, _GROUP_ATOMS = 256, 4096
"""Frames whose neighbours are searched together: at most so many, and no further one after so many atoms."""


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
    def tensors(self) -> list[Tensor]:
        """Those of the graph, then the others."""
        return [getattr(self.graph, name) for name in _OF_GRAPH] + [getattr(self, name) for name in _OTHERS]

    @property
    def arrays(self) -> list[np.ndarray]:
        """The :attr:`tensors` as arrays in the same memory, which is the processor's."""
        return [t.numpy() for t in self.tensors]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> Sample:
        """The sample that has these :attr:`tensors`."""
        return cls(Graph(*tensors[: len(_OF_GRAPH)]), *tensors[len(_OF_GRAPH) :])

    @classmethod
    def in_buffer(cls, buffer: Tensor, layout: Layout) -> Sample:
        """The sample whose :attr:`tensors` lie in a buffer; it moves as a whole."""
        sample = cls.from_tensors(layout.tensors(buffer))
        object.__setattr__(sample, "_buffer", (buffer, layout))
        return sample

    def _in_one_piece(self) -> tuple[Tensor, Layout]:
        return getattr(self, "_buffer", None) or joined(self.tensors)

    def __reduce__(self) -> tuple:
        # other processes take one tensor in the time of one
        if self.energy.device.type == "cpu":
            return Sample.in_buffer, self._in_one_piece()
        return Sample.from_tensors, (self.tensors,)

    def pin_memory(self) -> Sample:
        """A copy in pinned memory, which :meth:`to` copies to a GPU while the program goes on. Called by ``DataLoader``."""
        buffer, layout = self._in_one_piece()
        return Sample.in_buffer(buffer.pin_memory(), layout)

    def to(self, device: torch.device | str, **_) -> Sample:
        """On another device; itself if it is there. Called by Lightning for each batch."""
        device = torch.device(device)
        if device == self.energy.device:
            return self
        if self.energy.device.type != "cpu":
            return Sample.from_tensors([t.to(device) for t in self.tensors])
        buffer, layout = self._in_one_piece()
        return Sample.in_buffer(buffer.to(device, non_blocking=buffer.is_pinned()), layout)


_OF_GRAPH = tuple(f.name for f in fields(Graph))
_OTHERS = tuple(f.name for f in fields(Sample) if f.name != "graph")
TENSORS = _OF_GRAPH + _OTHERS
"""Names of :attr:`Sample.tensors`."""
_TYPES = tuple(
    torch.float64 if name in ("edge_vectors", "energy", "forces", "stress", "volume", "weight") else torch.int64
    for name in TENSORS
)


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch of several samples without phantom atoms, all in the memory of the processor; it lies in one buffer."""
    return collate_arrays([sample.arrays for sample in samples])


def collate_arrays(samples: Sequence[Sequence[np.ndarray]]) -> Sample:
    """The batch that :func:`collate` gives for the samples that have these :attr:`~Sample.arrays`."""
    parts = dict(zip(TENSORS, map(list, zip(*samples, strict=True)), strict=True))
    atoms, edges = (np.cumsum([0, *map(len, parts[name])]) for name in ("node_types", "edge_vectors"))
    for name, starts in (("row_ptr", edges), ("graph_ptr", atoms)):
        parts[name] = [part[:-1] + start for part, start in zip(parts[name], starts)] + [starts[-1:]]
    parts["edge_index"] = [part + start for part, start in zip(parts["edge_index"], atoms)]
    shapes = {name: (sum(map(len, part)), *part[0].shape[1:]) for name, part in parts.items()}
    shapes["edge_index"] = (2, int(edges[-1]))
    layout = Layout(_TYPES, tuple(shapes.values()))
    buffer = layout.new_buffer()
    for (name, part), array in zip(parts.items(), layout.arrays(buffer), strict=True):
        np.concatenate(part, axis=int(name == "edge_index"), out=array)
    return Sample.in_buffer(buffer, layout)


@dataclass(frozen=True)
class GraphOptions:
    """What a graph depends on besides its structure.

    Attributes:
        type_names: chemical symbols in the order of the model's types.
        cutoffs: angstrom, ``[centre type][neighbour type]``.
    """

    type_names: tuple[str, ...]
    cutoffs: tuple[tuple[float, ...], ...]

    @classmethod
    def from_potential(cls, config: PotentialConfig) -> GraphOptions:
        return cls(tuple(config.type_names), tuple(map(tuple, config.cutoff_matrix())))


def without_labels(sample: Sample) -> Sample:
    """The same structures without labels: what a process takes that has no frames in a step, as it adds nothing to the loss."""
    labels = {name: torch.full_like(getattr(sample, name), torch.nan) for name in ("energy", "forces", "stress")}
    return replace(sample, **labels)


def batch_of(samples: Sample | Sequence[Sample], otherwise: Sample) -> Sample:
    """One batch of several samples, or the batch that a data set has made of them; without any, ``otherwise``."""
    if isinstance(samples, Sample):
        return samples
    return collate(samples) if samples else otherwise


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


Refusal = Callable[[Atoms, FrameLabels], str | None]
"""Gives the reason to leave a frame out, in words; None takes it."""


@dataclass(frozen=True)
class FrameGroup:
    """Frames of one file that follow each other, and whose neighbours are searched together.

    Attributes:
        path: of the file.
        labels: names and units of labels in the file.
        frames: a few hundred at most, and few thousand atoms.
        error: why the file could not be read beyond these frames.
        source: number of the file among several.
    """

    path: str
    labels: Labels
    frames: list[RawFrame]
    error: NequIPMDError | None = None
    source: int = 0


def frame_groups(path: str, labels: Labels, source: int = 0) -> Iterator[FrameGroup]:
    """The frames of a file in groups. What is wrong with the file is the ``error`` of the last group."""
    frames: list[RawFrame] = []
    atoms, error = 0, None
    try:
        given, labels = labels, labels_in(path, labels)
        for frame in readers.raw_frames(path, given.units):
            frames.append(frame)
            atoms += frame.num_atoms
            if len(frames) == _GROUP or atoms >= _GROUP_ATOMS:
                yield FrameGroup(path, labels, frames, source=source)
                frames, atoms = [], 0
    except NequIPMDError as reason:
        error = reason
    if frames or error is not None:
        yield FrameGroup(path, labels, frames, error, source)


def group_samples(
    group: FrameGroup,
    options: GraphOptions,
    counter: LabelCounter,
    isolated_atoms: list[tuple[str, Atoms]],
    refuse: Refusal | None = None,
) -> Iterator[tuple[str, Atoms, Sample]]:
    """Each frame of a group: its name, itself, its sample. Args, Raises: as :func:`read_samples`."""
    taken, structures = [], []
    for frame in group.frames:
        name, atoms = frame.read()
        with naming(name):
            found = group.labels.of(atoms)
            if is_isolated_atom(atoms):
                counter.add_isolated_atom()
                isolated_atoms.append((name, with_labels(atoms, found)))
                continue
            if refuse is not None and (reason := refuse(atoms, found)) is not None:
                counter.leave_out(reason)
                continue
            structures.append(Structure.from_ase(atoms, options.type_names))
        counter.add(atoms, found)
        taken.append((name, atoms, found))
    graphs = _graphs([name for name, _, _ in taken], structures, options)
    for (name, atoms, found), structure, graph in zip(taken, structures, graphs):
        with naming(name):
            sample = _labelled(structure, graph, found)
        yield name, atoms, sample
    if group.error is not None:
        raise group.error


def read_samples(
    path: str,
    labels: Labels,
    options: GraphOptions,
    counter: LabelCounter,
    isolated_atoms: list[tuple[str, Atoms]],
) -> Iterator[tuple[str, Atoms, Sample]]:
    """Each frame of a file: its name, itself, its sample. A few frames at a time are in memory.

    Args:
        counter: counts the labels.
        isolated_atoms: takes the frames that are marked as isolated atoms, by name; they give no sample.

    Raises:
        NequIPMDError: a file or a frame that cannot be used; the message names it.
    """
    for group in frame_groups(path, labels):
        yield from group_samples(group, options, counter, isolated_atoms)


def labelled_frames(path: str, labels: Labels) -> Iterator[tuple[str, Atoms, FrameLabels]]:
    """Each frame of a file: its name, itself with lengths in angstrom, its labels in eV and angstrom.

    Raises:
        NequIPMDError: a file, a frame or a label that cannot be used; the message names it.
    """
    names = labels_in(path, labels)
    for name, atoms in readers.read(path, labels.units):
        with naming(name):
            found = names.of(atoms)
        yield name, atoms, found


def labels_in(path: str, labels: Labels) -> Labels:
    """The labels to look for in the frames of a file: in eV and angstrom where its reader gives these."""
    return replace(labels, units=ASE_UNITS) if readers.file_format(path).has_units else labels


@contextmanager
def naming(frame: str) -> Iterator[None]:
    """Errors begin with the name of the frame."""
    try:
        yield
    except NequIPMDError as error:
        raise NequIPMDError(f"{frame}: {error}") from None


def _graphs(names: Sequence[str], structures: Sequence[Structure], options: GraphOptions) -> list[Graph]:
    try:
        return build_graphs(structures, options.cutoffs)
    except NequIPMDError:
        for name, structure in zip(names, structures):  # the error of a search of many does not name the frame
            with naming(name):
                build_graph(structure, options.cutoffs)
        raise


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
