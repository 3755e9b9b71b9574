"""Random reads of graphs from files: LMDB, as the stores of ``nequip-md-data`` use it, HDF5, and the store itself.

``python benchmarks/data_store.py FILE TYPES [FILE TYPES ...] [--json FILE]`` converts the frames of each file (types:
chemical symbols joined by commas) with 1 and 2 processes, writes the same records to LMDB and HDF5, and reads them in
random order by 1, 2 and 4 processes. Files stay in the system's cache, so that formats are compared and not disks.
``--copies`` repeats frames.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import h5py
import lmdb
import numpy as np

from nequip_md.training.data.labels import Labels
from nequip_md.training.data.samples import GraphOptions
from nequip_md.training.data.store import GraphStore
from nequip_md.training.data.store_format import environment, frame_key
from nequip_md.training.data.store_writer import write_store

PROCESSES = (1, 2, 4)
WORKERS = (1, 2)


def read_lmdb(path: str, order: list[int]) -> None:
    opened = lmdb.open(path, subdir=False, readonly=True, lock=False)
    with opened.begin(buffers=True) as transaction:
        for k in order:
            np.array(np.frombuffer(transaction.get(frame_key(k)), np.uint8))
    opened.close()


def read_hdf5(path: str, order: list[int]) -> None:
    with h5py.File(path) as file:
        data, ends = file["data"], file["ends"][()]
        for k in order:
            data[ends[k] : ends[k + 1]]


def read_store(path: str, order: list[int]) -> None:
    store = GraphStore(path)
    for k in order:
        store[k]


READERS = {"lmdb": read_lmdb, "hdf5": read_hdf5, "store": read_store}


def records(store: GraphStore) -> list[bytes]:
    with environment(store.path).begin() as transaction:
        return [transaction.get(frame_key(k)) for k in range(len(store))]


def write_lmdb(path: Path, content: list[bytes]) -> None:
    with lmdb.open(str(path), subdir=False, lock=False, sync=False, map_size=1 << 40) as opened:
        with opened.begin(write=True) as transaction:
            for k, record in enumerate(content):
                transaction.put(frame_key(k), record, append=True)
        opened.sync(True)


def write_hdf5(path: Path, content: list[bytes]) -> None:
    ends = np.cumsum([0, *map(len, content)])
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (ends[-1],), np.uint8)
        for k, record in enumerate(content):
            data[ends[k] : ends[k + 1]] = np.frombuffer(record, np.uint8)
        file["ends"] = ends


def seconds(job: tuple[str, str, list[int]]) -> float:
    name, path, order = job
    started = time.perf_counter()
    READERS[name](path, order)
    return time.perf_counter() - started


def rate(name: str, path: Path, frames: int, processes: int, reads: int) -> float:
    """Frames in a second by all processes together."""
    rng = np.random.default_rng(0)
    jobs = [(name, str(path), rng.integers(0, frames, reads).tolist()) for _ in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(seconds, jobs, chunksize=1)  # imports, and the file in the system's cache
        started = time.perf_counter()
        pool.map(seconds, jobs, chunksize=1)
        return processes * reads / (time.perf_counter() - started)


def processor_time() -> dict[str, float]:
    """Seconds of a core that this process, and its children that have ended, have taken."""
    whose = {"this process": resource.RUSAGE_SELF, "workers": resource.RUSAGE_CHILDREN}
    return {name: sum(resource.getrusage(number)[:2]) for name, number in whose.items()}


def measure(source: str, types: list[str], cutoff: float, copies: int, reads: int, folder: Path) -> dict:
    options = GraphOptions(tuple(types), tuple((cutoff,) * len(types) for _ in types))
    paths = {name: folder / f"{name}.{'graphs' if name == 'store' else name}" for name in READERS}
    made, spent = {}, {}
    for workers in WORKERS:
        before, started = processor_time(), time.perf_counter()
        counts = write_store(paths["store"], [source] * copies, Labels(), options, workers=workers)
        seconds, frames = time.perf_counter() - started, sum(c.frames for c in counts)
        made[str(workers)] = round(frames / seconds)
        after = processor_time()
        spent[str(workers)] = {name: round(1e3 * (after[name] - before[name]) / frames, 3) for name in after}
    store = GraphStore(paths["store"])
    content = records(store)
    written = {}
    for name, write in (("lmdb", write_lmdb), ("hdf5", write_hdf5)):
        started = time.perf_counter()
        write(paths[name], content)
        written[name] = time.perf_counter() - started
    return {
        "file": Path(source).name,
        "frames": len(store),
        "atoms in a frame": int(store.table.num_atoms[0]),
        "edges in a frame": round(float(store.table.num_edges.mean())),
        "cutoff": cutoff,
        "bytes in a frame": round(os.path.getsize(paths["store"]) / len(store)),
        "conversion, frames/s": made,
        "conversion, processor ms/frame": spent,
        "write, s": {name: round(value, 3) for name, value in written.items()},
        "file, MB": {name: round(os.path.getsize(path) / 1e6, 1) for name, path in paths.items()},
        "random reads, frames/s": {
            name: {str(n): round(rate(name, path, len(store), n, reads)) for n in PROCESSES}
            for name, path in paths.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE TYPES")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--copies", type=int, default=1, help="how often the frames of a file are written")
    parser.add_argument("--reads", type=int, default=4000, help="reads of each process")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    # a load above 0 at the beginning is that of other programs, which take time from this one
    machine = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "load before": round(os.getloadavg()[0], 1)}
    result = {**machine, "sets": []}
    for source, types in zip(arguments.files[::2], arguments.files[1::2], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            options = (arguments.cutoff, arguments.copies, arguments.reads)
            result["sets"].append(measure(source, types.split(","), *options, Path(folder)))
        print(json.dumps(result["sets"][-1], indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
