"""Files to a store of graphs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial

import lmdb
import numpy as np
from ase import Atoms

from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.training.children import map_in_order
from nequip_md.training.data.digest import DataDigest, digested
from nequip_md.training.data.label_counts import LabelCounter, LabelCounts
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.sample_set import FrameTable, facts
from nequip_md.training.data.samples import FrameGroup, GraphOptions, Refusal, frame_groups, group_samples
from nequip_md.training.data.store import StoreMetadata, label_names
from nequip_md.training.data.store_format import METADATA, TABLE, VERSION, frame_key, pack

_MAP_SIZE = 1 << 40
"""Bytes of addresses that LMDB reserves; the file grows as it is written."""
_ALONE = 2
"""Groups of frames at the beginning that the writing process packs, so that small files need no other."""

UNITS = {
    "length": "angstrom",
    "energy": "eV",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3, positive under tension",
}


@dataclass(frozen=True)
class PackedFrames:
    """What a store takes of some frames that follow each other.

    Attributes:
        records: see :func:`~nequip_md.training.data.store_format.pack`.
        table: of these frames.
        digested: see :func:`~nequip_md.training.data.digest.digested`, of all these frames.
        counter: labels of these frames.
        isolated_atoms: frames of isolated atoms among them, by name; they have no record.
        source: number of their file among several.
    """

    records: list[bytes]
    table: FrameTable
    digested: dict[str, bytes]
    counter: LabelCounter
    isolated_atoms: list[tuple[str, Atoms]]
    source: int = 0

    def __len__(self) -> int:
        return len(self.records)


Packed = Iterable[PackedFrames]


def pack_frames(group: FrameGroup, options: GraphOptions, refuse: Refusal | None = None) -> PackedFrames:
    """The graphs and labels of some frames as a store takes them. Args, Raises: as :func:`write_store`."""
    counter = LabelCounter("train", group.path, group.labels)
    isolated: list[tuple[str, Atoms]] = []
    records, rows, contents = [], [], []
    for name, atoms, sample in group_samples(group, options, counter, isolated, refuse):
        records.append(pack(sample, name))
        rows.append(facts(sample))
        contents.append(digested(atoms, sample))
    joined = {name: b"".join(content[name] for content in contents) for name in (contents[0] if contents else ())}
    return PackedFrames(records, FrameTable.from_rows(rows), joined, counter, isolated, group.source)


def write_store(
    output: str | os.PathLike,
    files: Sequence[str],
    labels: Labels,
    options: GraphOptions,
    *,
    refuse: Refusal | None = None,
    workers: int = 1,
    progress: Callable[[Packed], Packed] = lambda packed: packed,
) -> list[LabelCounts]:
    """Write the graphs and labels of some files to a store. It takes the place of ``output`` when it is complete.

    Args:
        files: in any format of :mod:`~nequip_md.training.data.readers`.
        labels: names and units of labels in the files.
        options: types and cutoffs that the graphs are made for.
        refuse: gives the reason to leave a frame out.
        workers: processes that parse frames and search neighbours; the store is the same with any number.
        progress: goes through the frames, some at a time, and shows how far it is.

    Returns:
        The labels of each file.

    Raises:
        NequIPMDError: a file or a frame that cannot be used (the message names it), no frame at all, a full disk, a worker
            that has died.
    """
    groups = (group for k, path in enumerate(files) for group in frame_groups(path, labels, k))
    function = partial(pack_frames, options=options, refuse=refuse)
    # when writing fails, the processes end as well
    with closing(map_in_order(function, groups, workers, alone=_ALONE)) as packed:
        return write_packed(output, progress(packed), files, labels, options)


def write_packed(
    output: str | os.PathLike, packed: Packed, sources: Sequence[str], labels: Labels, options: GraphOptions
) -> list[LabelCounts]:
    """Write frames that are packed already to a store, in their order.

    Args:
        sources: what the frames come from, by :attr:`PackedFrames.source`.
        labels, options: that they were packed with.

    Returns, Raises: as :func:`write_store`.
    """
    counters = [LabelCounter("train", source, labels) for source in sources]
    isolated: list[tuple[str, Atoms]] = []
    digest, tables, written = DataDigest(), [], 0
    with replacing(output) as unfinished, _writing(unfinished) as environment:
        for group in packed:
            with environment.begin(write=True) as transaction:
                for record in group.records:
                    transaction.put(frame_key(written), record, append=True)
                    written += 1
            digest.add_contents(group.digested)
            tables.append(group.table)
            counters[group.source].add_counts(group.counter)
            isolated += group.isolated_atoms
        if not written:
            raise NequIPMDError(f"no frame of {', '.join(sources)} is left to write to {output}")
        counts = [counter.result() for counter in counters]
        metadata = StoreMetadata(
            version=VERSION,
            type_names=list(options.type_names),
            cutoffs=[list(row) for row in options.cutoffs],
            label_names=label_names(labels),
            units=UNITS,
            digests=digest.values,
            sources=list(sources),
            isolated_atoms=[(name, str(a.symbols), a.calc.results.get("energy")) for name, a in isolated],
            unused_stress=sum(c.unused_stress for c in counts),
            names="; ".join(dict.fromkeys(c.names for c in counts)),
        )
        table = FrameTable.joined(tables)
        with environment.begin(write=True) as transaction:
            transaction.put(METADATA, json.dumps(asdict(metadata)).encode())
            for f in fields(FrameTable):
                transaction.put(TABLE + f.name.encode(), _as_file(getattr(table, f.name)))
    return counts


@contextmanager
def _writing(path: os.PathLike) -> Iterator[lmdb.Environment]:
    """An LMDB environment in an empty file, which is complete on disk when the block ends.

    Raises:
        NequIPMDError: LMDB cannot write.
    """
    # nobody reads the file before it has its name, so that neither locks nor a sync after each step are needed
    environment = lmdb.open(os.fspath(path), subdir=False, lock=False, sync=False, map_size=_MAP_SIZE)
    try:
        yield environment
        environment.sync(True)
    except lmdb.Error as error:
        raise NequIPMDError(f"cannot write the store: {error}; is the disk full?") from None
    finally:
        environment.close()


def _as_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
