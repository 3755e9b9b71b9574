"""Stores of finished graphs: data sets that are larger than the memory, or that shall be read at once.

A store is one file, made by ``nequip-md-data convert`` for the cutoffs and types of one model. The system maps it to
memory and reads what is asked for, in any order and by any number of processes.
"""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch.utils.data import Dataset

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.label_counts import LabelCounts
from nequip_md.training.data.labels import Labels, Names
from nequip_md.training.data.sample_set import FrameTable
from nequip_md.training.data.samples import GraphOptions, Sample
from nequip_md.training.data.store_format import (
    METADATA,
    SUFFIX,
    TABLE,
    VERSION,
    environment,
    frame_key,
    identity,
    unpack,
    unpack_arrays,
)

_FORMAT = "nequip-md graphs"


@dataclass(frozen=True)
class StoreMetadata:
    """What a store says of itself.

    Attributes:
        version: of the format.
        type_names: chemical symbols in the order of the model's types.
        cutoffs: angstrom, ``[centre type][neighbour type]``.
        label_names: under which the labels were found, by ``energy``, ``forces``, ``stress``, ``virial``, ``weight``;
            None means ASE's names.
        units: of the labels in the store.
        digests: SHA-256 of the data, see :func:`~nequip_md.training.data.digest.data_digest`.
        sources: files that the frames come from.
        isolated_atoms: name, chemical symbol and energy (eV or None) of frames of isolated atoms, which are no samples.
        unused_stress: frames whose stress is not used, because their cells have no volume.
        names: names in the files, for messages.
        format: ``nequip-md graphs``.
    """

    version: int
    type_names: list[str]
    cutoffs: list[list[float]]
    label_names: dict[str, Names]
    units: dict[str, str]
    digests: dict[str, str]
    sources: list[str]
    isolated_atoms: list[tuple[str, str, float | None]]
    unused_stress: int
    names: str
    format: str = _FORMAT


def is_store(path: str | os.PathLike) -> bool:
    """Whether the name is that of a store of graphs (``.graphs``)."""
    return os.fspath(path).endswith(SUFFIX)


def label_names(labels: Labels) -> dict[str, Names]:
    """The names of labels as a store keeps them."""
    given = {f.name: getattr(labels, f.name) for f in fields(labels) if f.name not in ("units", "weight")}
    as_lists = {key: [n] if isinstance(n, str) else n if n is None else list(n) for key, n in given.items()}
    return {**as_lists, "weight": labels.weight}


class GraphStore(Dataset):
    """The samples of a store, in the order in which they were written; each is read when it is asked for.

    Processes may share one: each opens the file for itself.

    Attributes:
        path: of the file.
        metadata: what it was made of and for.
        table: facts of the frames, read when the store is opened.
    """

    in_memory = False

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            NequIPMDError: no such file, one that is no store, that is cut off, or of another version of the format.
        """
        self.path = os.fspath(path)
        with environment(self.path).begin() as transaction:
            text = transaction.get(METADATA)
            content = json.loads(text) if text is not None else {}
            if content.get("format") != _FORMAT:
                raise NequIPMDError(
                    f"{self.path} is an LMDB file, but not a store of graphs; only those that nequip-md-data convert"
                    f" writes are named {SUFFIX}"
                )
            if content["version"] != VERSION:
                raise NequIPMDError(
                    f"the store {self.path} has format {content['version']}, this version of nequip-md reads format"
                    f" {VERSION}; make it anew: {_command(content.get('sources', ['FILES']), self.path)}"
                )
            self.metadata = StoreMetadata(**content)
            columns = (transaction.get(TABLE + f.name.encode()) for f in fields(FrameTable))
            self.table = FrameTable(*(np.load(io.BytesIO(column), allow_pickle=False) for column in columns))
        self._identity = identity(os.path.realpath(self.path))
        self._opened: lmdb.Environment | None = None
        self._process: int | None = None

    @property
    def digests(self) -> dict[str, str]:
        return self.metadata.digests

    @property
    def isolated_atoms(self) -> list[tuple[str, Atoms]]:
        """Frames of isolated atoms by name, with their energies as ASE's results."""
        frames = []
        for name, symbol, energy in self.metadata.isolated_atoms:
            atoms = Atoms(symbol, [[0, 0, 0]])
            atoms.calc = SinglePointCalculator(atoms, **({} if energy is None else {"energy": energy}))
            frames.append((f"{name}, in {self.path}", atoms))
        return frames

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        return self._read(index)[0]

    def name(self, index: int) -> str:
        """Name of a frame for messages: its number here, and the name that it had in its file."""
        return f"frame {index} of {self.path} ({self._read(index)[1]})"

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], list[np.ndarray]]]:
        """A function from the number of a frame to its arrays, which are valid within the block."""
        with self._records() as record:
            yield lambda index: unpack_arrays(record(index))[0]

    def _read(self, index: int) -> tuple[Sample, str]:
        with self._records() as record:
            return unpack(record(index))

    @contextmanager
    def _records(self) -> Iterator[Callable[[int], memoryview]]:
        """A function from the number of a frame to its record, which is valid within the block."""
        if self._process != os.getpid():
            self._opened, self._process = environment(self.path), os.getpid()
            if identity(os.path.realpath(self.path)) != self._identity:
                raise self._replaced
        try:
            transaction = self._opened.begin(buffers=True)
        except lmdb.Error:  # another store of the same name has been opened since, in the place of this one
            raise self._replaced from None

        def record(index: int) -> memoryview:
            if not 0 <= index < len(self):
                raise IndexError(f"the store {self.path} has {len(self)} frames, and none with number {index}")
            return transaction.get(frame_key(index))

        with transaction:
            yield record

    @property
    def _replaced(self) -> NequIPMDError:
        return NequIPMDError(f"the store {self.path} was replaced while it was in use; start again")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None, "_process": None}

    def counts(self, role: str) -> LabelCounts:
        """Labels of the frames, as for a file that is read for ``role``."""
        present = {label: int(getattr(self.table, f"has_{label}").sum()) for label in ("energy", "forces", "stress")}
        isolated = len(self.metadata.isolated_atoms)
        more = {"unused_stress": self.metadata.unused_stress, "isolated_atoms": isolated, "names": self.metadata.names}
        return LabelCounts(role, self.path, len(self), **present, **more)

    def require(self, options: GraphOptions, labels: Labels) -> None:
        """Refuse a model, or names of labels, that the store was not made for.

        Args:
            labels: names that are None leave it to the store.

        Raises:
            NequIPMDError: other types, cutoffs or names of labels; the message says which and how to make it anew.
        """
        made, wanted = self.metadata, label_names(labels)
        differences = [
            f"data.{key} is {wanted[label]}, the store was made with {made.label_names[label]}"
            for label, key in _KEYS.items()
            if wanted[label] != made.label_names[label] and (wanted[label] is not None or label == "weight")
        ]
        if list(options.type_names) != made.type_names:
            differences.append(f"model.type_names is {list(options.type_names)}, the store has {made.type_names}")
        elif (cutoffs := [list(row) for row in options.cutoffs]) != made.cutoffs:
            differences.append(f"the cutoffs of the model are {cutoffs}, those of the store {made.cutoffs}")
        if differences:
            raise NequIPMDError(
                f"the store {self.path} was made for another training file: {'; '.join(differences)}; make it anew:"
                f" {_command(made.sources, self.path)}"
            )


_KEYS = {
    "energy": "energy_key",
    "forces": "force_key",
    "stress": "stress_key",
    "virial": "virial_key",
    "weight": "weight_key",
}


def store_facts(path: str | os.PathLike) -> dict[str, Any]:
    """What a store holds, for ``nequip-md-info``.

    Raises:
        NequIPMDError: it is missing, damaged or no store.
    """
    store = GraphStore(path)
    made, table, counts = store.metadata, store.table, store.counts("info")
    return {
        "file": os.fspath(path),
        "kind": "store of graphs",
        "version": made.version,
        "types": made.type_names,
        "cutoffs": [list(row) for row in made.cutoffs],
        "frames": len(store),
        "atoms": int(table.num_atoms.sum()),
        "edges": int(table.num_edges.sum()),
        "labels": {label: getattr(counts, label) for label in ("energy", "forces", "stress")},
        "isolated atoms": counts.isolated_atoms,
        "size": f"{os.path.getsize(path) / 1e6:.1f} MB",
        "made from": made.sources,
    }


def _command(sources: list[str], path: str) -> str:
    return f"nequip-md-data convert {shlex.join(sources)} -o {shlex.quote(path)} --train-file TRAIN.yaml"
