"""Files to a store of graphs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice

import lmdb
import numpy as np
from ase import Atoms

from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.training.data.digest import DataDigest
from nequip_md.training.data.label_counts import LabelCounter, LabelCounts
from nequip_md.training.data.labels import FrameLabels, Labels
from nequip_md.training.data.sample_set import FrameTable, facts
from nequip_md.training.data.samples import GraphOptions, Sample, read_samples
from nequip_md.training.data.store import StoreMetadata, label_names
from nequip_md.training.data.store_format import METADATA, TABLE, VERSION, frame_key, pack

_MAP_SIZE = 1 << 40
"""Bytes of addresses that LMDB reserves; the file grows as it is written."""
_COMMIT = 64
"""Frames that are written at once."""

UNITS = {
    "length": "angstrom",
    "energy": "eV",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3, positive under tension",
}

Frames = Iterable[tuple[str, Atoms, Sample]]


def write_store(
    output: str | os.PathLike,
    files: Sequence[str],
    labels: Labels,
    options: GraphOptions,
    *,
    keep: Callable[[Atoms, FrameLabels], bool] = lambda atoms, found: True,
    progress: Callable[[Frames], Frames] = lambda frames: frames,
) -> list[LabelCounts]:
    """Write the graphs and labels of some files to a store. It takes the place of ``output`` when it is complete.

    Args:
        files: in any format of :mod:`~nequip_md.training.data.readers`.
        labels: names and units of labels in the files.
        options: types and cutoffs that the graphs are made for.
        keep: whether to take a frame.
        progress: goes through the frames and shows how far it is.

    Returns:
        The labels of each file.

    Raises:
        NequIPMDError: a file or a frame that cannot be used (the message names it), no frame at all, a full disk.
    """
    counters = [LabelCounter("train", path, labels) for path in files]
    isolated: list[tuple[str, Atoms]] = []

    def frames() -> Iterator[tuple[str, Atoms, Sample]]:
        for path, counter in zip(files, counters, strict=True):
            yield from read_samples(path, labels, options, counter, isolated, keep)

    digest, rows = DataDigest(), []
    with replacing(output) as unfinished, _writing(unfinished) as environment:
        source = iter(progress(frames()))
        while group := list(islice(source, _COMMIT)):
            with environment.begin(write=True) as transaction:
                for name, atoms, sample in group:
                    transaction.put(frame_key(len(rows)), pack(sample, name), append=True)
                    digest.add(atoms, sample)
                    rows.append(facts(sample))
        if not rows:
            raise NequIPMDError(f"no frame of {', '.join(files)} is left to write to {output}")
        counts = [counter.result() for counter in counters]
        metadata = StoreMetadata(
            version=VERSION,
            type_names=list(options.type_names),
            cutoffs=[list(row) for row in options.cutoffs],
            label_names=label_names(labels),
            units=UNITS,
            digests=digest.values,
            sources=list(files),
            isolated_atoms=[(name, str(a.symbols), a.calc.results.get("energy")) for name, a in isolated],
            unused_stress=sum(c.unused_stress for c in counts),
            names="; ".join(dict.fromkeys(c.names for c in counts)),
        )
        table = FrameTable.from_rows(rows)
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
