"""How a store of graphs lies in its file: an LMDB environment with one record for each frame, a table and metadata.

======================  =======================================================================================
key                     value
======================  =======================================================================================
``metadata``            JSON, see :class:`~nequip_md.training.data.store.StoreMetadata`
``table/NAME``          a column of :class:`~nequip_md.training.data.sample_set.FrameTable`, as a file of ``numpy.save``
a frame's number        a record, see :func:`pack`; the number in 8 bytes, the highest first
======================  =======================================================================================
"""

from __future__ import annotations

import os

import lmdb
import numpy as np
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.samples import Sample

SUFFIX = ".graphs"
VERSION = 1
METADATA = b"metadata"
TABLE = b"table/"

_open: dict[str, tuple[int, tuple, lmdb.Environment]] = {}
"""By path: the process that has opened the environment, the file's identity, the environment. LMDB takes one for each
file and process, and none that was opened before a fork."""


def frame_key(index: int) -> bytes:
    return index.to_bytes(8, "big")


def identity(path: str) -> tuple[int, int, int]:
    """Changes when the file is replaced."""
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


def environment(path: str) -> lmdb.Environment:
    """The LMDB environment of a store, opened to be read, once in each process.

    Raises:
        NequIPMDError: no such file, one that is no LMDB environment, or that is cut off.
    """
    path = os.path.realpath(path)
    try:
        now = identity(path)
    except OSError as error:
        raise NequIPMDError(f"cannot read the store {path}: {error.strerror}") from None
    if path in _open:
        process, then, found = _open[path]
        if process == os.getpid() and then == now:
            return found
        found.close()
        del _open[path]
    try:
        found = lmdb.open(path, subdir=False, readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise NequIPMDError(f"{path} is not a store of graphs, or it is damaged: {error}") from None
    expected = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
    if os.path.getsize(path) < expected:  # LMDB maps the file, and the system ends a process that reads beyond its end
        found.close()
        raise NequIPMDError(
            f"the store {path} is cut off: it has {os.path.getsize(path)} of {expected} bytes; copy it again"
        )
    _open[path] = os.getpid(), now, found
    return found


def pack(sample: Sample, name: str) -> bytes:
    """The record of one structure of N atoms and E edges.

    In this order: int64 N, E, length of the name; float64 energy, weight, volume, stress [9], forces [N, 3], edge
    vectors [E, 3]; int32 edges of each centre [N], types [N], neighbours [E]; the name in UTF-8.
    """
    graph, text = sample.graph, name.encode()
    header = np.array([graph.num_nodes, graph.num_edges, len(text)], dtype=np.int64)
    doubles = (sample.energy, sample.weight, sample.volume, sample.stress, sample.forces, graph.edge_vectors)
    integers = (graph.row_ptr.diff(), graph.node_types, graph.edge_index[1])
    return b"".join(
        [
            header.tobytes(),
            *(t.numpy().astype(np.float64, copy=False).tobytes() for t in doubles),
            *(t.numpy().astype(np.int32).tobytes() for t in integers),
            text,
        ]
    )


def unpack(record: memoryview) -> tuple[Sample, str]:
    """The sample and the name in a record; copies, so that the record need not stay."""
    arrays, name = unpack_arrays(record)
    return Sample.from_tensors([torch.from_numpy(array.copy()) for array in arrays]), name.decode()


def unpack_arrays(record: memoryview) -> tuple[list[np.ndarray], bytes]:
    """The :attr:`~nequip_md.training.data.samples.Sample.arrays` of the sample in a record, partly in its memory; its name."""
    nodes, edges, length = np.frombuffer(record, np.int64, 3).tolist()
    doubles = np.frombuffer(record, np.float64, 12 + 3 * nodes + 3 * edges, 24)
    start = 24 + 8 * len(doubles)
    integers = np.frombuffer(record, np.int32, 2 * nodes + edges, start)
    counts, types = integers[:nodes], integers[nodes : 2 * nodes].astype(np.int64)
    row_ptr = np.zeros(nodes + 1, dtype=np.int64)
    np.cumsum(counts, out=row_ptr[1:])
    index = np.empty((2, edges), dtype=np.int64)
    index[0], index[1] = np.arange(nodes).repeat(counts), integers[2 * nodes :]
    energy, weight, volume, stress = doubles[0:1], doubles[1:2], doubles[2:3], doubles[3:12].reshape(1, 3, 3)
    forces, vectors = doubles[12 : 12 + 3 * nodes].reshape(nodes, 3), doubles[12 + 3 * nodes :].reshape(edges, 3)
    graph = [vectors, index, row_ptr, types, np.array([0, nodes])]
    name = bytes(record[start + 4 * len(integers) :][:length])
    return [*graph, energy, forces, stress, volume, weight, np.array([0])], name
