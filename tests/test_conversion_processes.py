"""Conversion to stores by several processes: the same files, the same errors, and what is left when it is ended."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md.errors import NequIPMDError
from nequip_md.training import children
from nequip_md.training.children import map_in_order
from nequip_md.training.data.cli import main
from nequip_md.training.data.filters import Filter
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.samples import GraphOptions
from nequip_md.training.data.store import GraphStore
from nequip_md.training.data.store_writer import write_store

OPTIONS = GraphOptions(("Ar", "Ne"), ((1.3, 1.3), (1.3, 1.3)))


def frames(count, seed):
    """Crystals of 960 atoms, some of which lack a label or have a weight, large forces or another composition."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        atoms = bulk("Ar", "fcc", a=1.6, cubic=True).repeat((5, 6, 8))
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        atoms.symbols[: k % 3] = "Ne"
        results = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3)), "stress": rng.normal(size=6)}
        results["forces"][0, 0] += 50.0 * (k % 7 == 3)
        for name in ("stress", "energy")[: k % 3]:
            del results[name]
        atoms.calc = SinglePointCalculator(atoms, **results)
        if k % 4 == 1:
            atoms.info["config_weight"] = 0.5 * k
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of 45 and 13 frames, of which a process takes 5 at a time."""
    folder = tmp_path_factory.mktemp("data")
    alone = Atoms("Ne", [[0, 0, 0]], info={"config_type": "IsolatedAtom"})
    alone.calc = SinglePointCalculator(alone, energy=-0.25)
    made = frames(45, 1)
    ase.io.write(folder / "one.extxyz", [*made[:30], alone, *made[30:]])
    ase.io.write(folder / "other.traj", frames(13, 2))
    return folder


def convert(files, output, workers, **more):
    return write_store(output, list(map(str, files)), Labels(weight="config_weight"), OPTIONS, workers=workers, **more)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_any_number_of_processes_writes_the_same_file(folder, tmp_path, monkeypatch, start):
    monkeypatch.setattr(children, "START", start)
    files = [folder / name for name in ("one.extxyz", "other.traj", "one.extxyz")]
    refuse = Filter(max_force=40.0)
    one, several = (convert(files, tmp_path / f"{n}.graphs", n, refuse=refuse) for n in (1, 3))
    assert (tmp_path / "1.graphs").read_bytes() == (tmp_path / "3.graphs").read_bytes()
    assert one == several and [c.left_out for c in one] == [{"a larger force": n} for n in (6, 2, 6)]
    store = GraphStore(tmp_path / "3.graphs")
    assert len(store) == 39 + 11 + 39 and [c.frames for c in one] == [39, 11, 39]
    assert store.name(3).endswith("(frame 4 of " + str(files[0]) + ")")
    assert [name for name, _, _ in store.metadata.isolated_atoms] == [f"frame 30 of {files[0]}"] * 2


def test_the_first_frame_that_is_wrong_is_named(folder, tmp_path):
    """The frames 22 and 33 cannot be used, and the file ends within its last frame."""
    before = {p.name for p in multiprocessing.active_children()}
    made = frames(40, 3)
    made[22].symbols[5] = "Kr"
    made[33].calc.results["energy"] = np.inf
    ase.io.write(tmp_path / "bad.extxyz", made)
    text = (tmp_path / "bad.extxyz").read_text()
    (tmp_path / "bad.extxyz").write_text(text[:-500])
    made[22].symbols[5] = "Ar"
    ase.io.write(tmp_path / "better.extxyz", made)
    cut = text.replace("energy=inf", "energy=1.0")[:-500].replace("\nKr ", "\nAr ")
    (tmp_path / "cut.extxyz").write_text(cut)
    expected = {
        "bad": "frame 22 of .*bad.extxyz: the model has no type for Kr",
        "better": "frame 33 of .*better.extxyz: a value of its energy is not finite",
        "cut": "ASE cannot read frame 39 of the data file .*cut.extxyz: .*the file ends within the frame",
    }
    for name, message in expected.items():
        for workers in (1, 2):
            with pytest.raises(NequIPMDError, match=message):
                convert([folder / "one.extxyz", tmp_path / f"{name}.extxyz"], tmp_path / "out.graphs", workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.extxyz" for name in expected)
    assert {p.name for p in multiprocessing.active_children()} <= before


def processes_of(session):
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = path.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(number) == session and state != "Z":
            found.append(int(path.name))
    return found


def until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it takes more than a minute")


@pytest.fixture
def running(folder, tmp_path):
    """A conversion by two processes, which are at work."""
    files = [str(folder / "one.extxyz")] * 400
    options = ["--cutoff", "1.3", "--types", "Ar", "Ne", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nequip_md.training.data.cli", "convert", *files, "-o", "out.graphs", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
        start_new_session=True,
    )
    with process:
        until(lambda: len(processes_of(process.pid)) >= 3 or process.poll() is not None)
        until(lambda: any(p.stat().st_size > 5e6 for p in tmp_path.iterdir()) or process.poll() is not None)
        yield process
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_nothing_is_left_of_a_conversion_that_is_ended(running, tmp_path, number, status, name):
    os.killpg(running.pid, number)  # as a terminal and Slurm do
    _, error = running.communicate(timeout=120)
    assert (running.returncode, error) == (status, f"ended by {name}\n")
    assert list(tmp_path.iterdir()) == []
    until(lambda: not processes_of(running.pid))


def test_processes_end_with_the_one_that_is_killed(running):
    running.kill()
    running.wait()
    until(lambda: not processes_of(running.pid))


def test_a_process_that_dies_is_reported(running, tmp_path):
    os.kill(next(pid for pid in processes_of(running.pid) if pid != running.pid), signal.SIGKILL)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 1 and re.search(r"error: one of 2 processes has died, most often .*memory", error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_processes(folder, tmp_path):
    """The writer fails while others are at work."""
    command = f"ulimit -f 20000; {sys.executable} -m nequip_md.training.data.cli convert"
    options = "-o out.graphs --cutoff 1.3 --types Ar Ne --workers 2"
    done = subprocess.Popen(
        ["bash", "-c", f"{command} {(str(folder / 'one.extxyz') + ' ') * 10} {options}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    _, error = done.communicate(timeout=120)
    assert done.returncode == 1 and re.search("error: cannot write the store: .*is the disk full", error)
    assert list(tmp_path.iterdir()) == [] and processes_of(done.pid) == []


def square(x):
    if x == 13:
        raise ValueError("unlucky")
    return os.getpid(), x * x


def test_results_come_in_order_and_few_items_are_held():
    taken = []
    items = (taken.append(k) or k for k in range(13))
    results = map_in_order(square, items, 2, alone=3)
    first = [next(results) for _ in range(4)]
    assert len(taken) <= 9
    found = [*first, *results]
    assert [value for _, value in found] == [k * k for k in range(13)]
    assert {pid for pid, _ in found[:3]} == {os.getpid()} and os.getpid() not in {pid for pid, _ in found[3:]}
    with pytest.raises(ValueError, match="unlucky"):
        list(map_in_order(square, range(30), 2))
    assert list(map_in_order(square, range(3), 2, alone=5)) == [(os.getpid(), k * k) for k in range(3)]


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_of_processes_that_are_none(capsys, number):
    with pytest.raises(SystemExit) as end:
        main(["convert", "x.extxyz", "-o", "x.graphs", "--workers", number])
    assert end.value.code == 2 and "is not a number of processes; give 1 or more" in capsys.readouterr().err
