"""A store of a million frames: time and memory of making it, of opening it for training, and of an epoch's batches.

``python benchmarks/large_store.py FILE TYPES [--frames N ...] [--json FILE]`` perturbs the first frame of a file (types:
chemical symbols joined by commas) N times, at random and with random labels. The graphs go straight to the store, by the
code and the processes of ``nequip-md-data convert``; nothing is parsed. Then a new process opens the store as a training
does (``AtomsData``), another one goes through all frames once, for the statistics, and others read the first batches of
an epoch with 0, 1 and 2 workers.

Memory is that of all processes together which belongs to no file (``Pss_Anon`` in Linux' ``smaps_rollup``): pages of the store
that the system keeps in its cache are not counted, as it gives them away when programs need memory. What training needs to be
imported is in it at ``imports``. The largest value is that of samples every 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md.model.config import AllegroConfig
from nequip_md.training.children import map_in_order
from nequip_md.training.config import DataConfig
from nequip_md.training.data import readers
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.readers import RawFrame
from nequip_md.training.data.samples import FrameGroup, GraphOptions
from nequip_md.training.data.statistics import compute_statistics
from nequip_md.training.data.store_writer import PackedFrames, pack_frames, write_packed
from nequip_md.training.data.units import ASE_UNITS

GROUP = 150
"""Frames that a process makes at a time."""
BATCH = 8
LABELS = Labels(weight="config_weight")
WORKERS = (0, 1, 2)


def perturbed(first: int, count: int, base: Atoms, options: GraphOptions) -> PackedFrames:
    """Frames with these numbers; they depend on nothing else."""
    frames = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        atoms = Atoms(base.numbers, base.positions + rng.normal(scale=0.05, size=base.positions.shape))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(base), 3)))
        frames.append(RawFrame("perturbed", number, "", atoms, "NumPy", ASE_UNITS))
    return pack_frames(FrameGroup("perturbed", LABELS, frames), options)


def make(path: Path, base: Atoms, frames: int, options: GraphOptions, workers: int) -> None:
    function = partial(_perturbed, frames=frames, base=base, options=options)
    with closing(map_in_order(function, range(0, frames, GROUP), workers)) as packed:
        write_packed(path, packed, ["perturbed"], LABELS, options)


def _perturbed(first: int, frames: int, base: Atoms, options: GraphOptions) -> PackedFrames:
    return perturbed(first, min(GROUP, frames - first), base, options)


def memory() -> float:
    """Memory of this process and its children that belongs to no file, bytes."""
    own = os.getpid()
    children = (Path("/proc") / str(own) / "task" / str(own) / "children").read_text().split()
    total = 0
    for process in (own, *children):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon:"))
    return 1024 * total


@contextmanager
def largest_memory() -> Iterator[dict[str, float]]:
    """Gives a dictionary that has the largest :func:`memory` of the block at its end, as ``largest``."""
    found, ended = {"largest": memory()}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            found["largest"] = max(found["largest"], memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found["largest"] = max(found["largest"], memory())


def opened(path: Path, types: list[str], cutoff: float, **keys) -> AtomsData:
    config = DataConfig(train=[str(path)], validation_split=0.01, batch_size=BATCH, **keys)
    return AtomsData(config, AllegroConfig(type_names=types, cutoff=cutoff))


def measure_opening(path: Path, types: list[str], cutoff: float) -> dict:
    before = memory()
    with largest_memory() as largest:
        started = time.perf_counter()
        data = opened(path, types, cutoff)
        seconds = time.perf_counter() - started
    return {
        "open, s": round(seconds, 2),
        "imports, MB": round(before / 1e6),
        "opened, MB": round(memory() / 1e6),
        "largest while opening, MB": round(largest["largest"] / 1e6),
        "training frames": len(data.train),
    }


def measure_statistics(path: Path, types: list[str], cutoff: float) -> dict:
    data = opened(path, types, cutoff)
    before = memory()
    with largest_memory() as largest:
        started = time.perf_counter()
        compute_statistics(data.train, types)
        seconds = time.perf_counter() - started
    return {"statistics, s": round(seconds, 1), "more memory, MB": round((largest["largest"] - before) / 1e6)}


def measure_epoch(path: Path, types: list[str], cutoff: float, workers: int, batches: int) -> dict:
    data = opened(path, types, cutoff, workers=workers)
    half = min(batches, len(data.train) // BATCH) // 2
    before = memory()
    with largest_memory() as largest:
        started = time.perf_counter()
        epoch = iter(data.train_dataloader())
        next(epoch)
        first = time.perf_counter() - started
        started = time.perf_counter()
        count = sum(1 for _ in islice(epoch, half))
        rate = count / (time.perf_counter() - started)
        middle = memory()
        count += sum(1 for _ in islice(epoch, half))
    return {
        "first batch after, s": round(first, 2),
        "batches": count,
        "batches/s": round(rate),
        "before, MB": round(before / 1e6),
        "after half of the batches, MB": round(middle / 1e6),
        "at the end, MB": round(memory() / 1e6),
        "largest, MB": round(largest["largest"] / 1e6),
    }


def apart(function, *arguments):
    """The result of a function in a process of its own, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_fork_workers) as pool:
        return pool.submit(function, *arguments).result()


def _fork_workers() -> None:
    """Start the readers of data as a training does; a process that was spawned would spawn them as well."""
    multiprocessing.set_start_method("fork", force=True)


def written(path: Path, base: Atoms, frames: int, options: GraphOptions, workers: int) -> dict:
    """Make a store, unless it is there already. What was measured meanwhile is kept beside it."""
    facts = path.with_suffix(".json")
    if not path.exists():
        with largest_memory() as largest:
            started = time.perf_counter()
            make(path, base, frames, options, workers)
            seconds = time.perf_counter() - started
        rates = {
            "s": round(seconds),
            "frames/s": round(frames / seconds),
            "largest, MB": round(largest["largest"] / 1e6),
        }
        facts.write_text(json.dumps({"processes": workers, **rates, "load after": round(os.getloadavg()[0], 1)}))
    return json.loads(facts.read_text())


def measure(path: Path, base: Atoms, types: list[str], cutoff: float, frames: int, batches: int, workers: int) -> dict:
    options = GraphOptions(tuple(types), tuple((cutoff,) * len(types) for _ in types))
    return {
        "frames": frames,
        "atoms in a frame": len(base),
        "cutoff": cutoff,
        "write": written(path, base, frames, options, workers),
        "file, GB": round(path.stat().st_size / 1e9, 3),
        "bytes in a frame": round(path.stat().st_size / frames),
        "open": apart(measure_opening, path, types, cutoff),
        "epoch, by workers": {str(n): apart(measure_epoch, path, types, cutoff, n, batches) for n in WORKERS},
        "statistics": apart(measure_statistics, path, types, cutoff),
        "load after": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("types", help="chemical symbols joined by commas")
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 1_000_000], metavar="N")
    parser.add_argument("--cutoff", type=float, default=3.0)
    parser.add_argument("--batches", type=int, default=4000, help="batches of an epoch that are read")
    parser.add_argument("--workers", type=int, default=2, help="processes that make the store")
    parser.add_argument(
        "--keep", metavar="FOLDER", help="keep the stores there; those that are there are not made again"
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    _, base = next(readers.read(arguments.file))
    machine = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "load before": round(os.getloadavg()[0], 1)}
    result = {**machine, "batch": BATCH, "sets": []}
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(arguments.keep or temporary) / f"{frames}.graphs"
            sizes = (frames, arguments.batches, arguments.workers)
            result["sets"].append(measure(path, base, arguments.types.split(","), arguments.cutoff, *sizes))
        print(json.dumps(result["sets"][-1], indent=2))
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
