"""Building, finding and starting: the Python side of the plugin."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from nequip_md import NequIPMDError
from nequip_md.lammps import build as build_module_function
from nequip_md.lammps import plugin_path
from nequip_md.lammps.cli import main
from nequip_md.lammps.installation import Installation, cache_folder
from support.lammps_run import run_lammps, run_program
from support.lammps_systems import NATIVE, SYSTEMS, nequip

SYSTEM = SYSTEMS["orthogonal"]
build_module = sys.modules["nequip_md.lammps.build"]


@pytest.fixture
def empty_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def _slow_compile(installation, folder):
    """Replaces the compiler: writes a mark for each run, and leaves the folder incomplete for a while."""
    with open(folder.parent.parent / "compilations", "a") as log:
        log.write("x")
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    for name in (build_module.PLUGIN, build_module.ENGINE):
        time.sleep(0.2)
        (scratch / name).write_text("built")
    scratch.rename(folder)


def _build_in_process(answers):
    build_module._compile = _slow_compile
    folder = build_module_function()
    answers.put((str(folder), build_module.is_built(folder)))


def test_concurrent_builds(empty_cache):
    """If ranks start together, one compiles and all get the same complete folder."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_build_in_process, args=(answers,)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert len(set(results)) == 1 and results[0][1]
    assert (empty_cache.parent / "compilations").read_text() == "x"


def test_failed_build_is_remembered(empty_cache, monkeypatch, capfd):
    """``plugin_path`` never raises, says why once in a line, and does not try again; ``build`` does."""
    calls = []

    def fail(installation, folder):
        calls.append(folder)
        raise NequIPMDError("no compiler in this test\nand a second line")

    monkeypatch.setattr(build_module, "_compile", fail)
    first = plugin_path()
    assert "no compiler in this test" in capfd.readouterr().err
    second = plugin_path()
    message = capfd.readouterr().err
    assert "nequip-md-lammps build" in message and len(message.splitlines()) == 1
    assert len(calls) == 1 and isinstance(first, str) and isinstance(second, str)
    with pytest.raises(NequIPMDError, match="no compiler"):
        build_module_function()
    assert main(["build"]) == 1 and "no compiler" in capfd.readouterr().err
    assert len(calls) == 3
    monkeypatch.setattr(build_module, "_compile", _slow_compile)
    assert Path(plugin_path()).name == second.rsplit("/")[-1]
    assert main(["build"]) == 0
    assert main(["path"]) == 0 and build_module.is_built(Path(plugin_path()))


@pytest.mark.parametrize(
    "compiler, words",
    [
        ("/bin/false", r"(?s)failed\. The command was.*/bin/false"),
        ("/nowhere/g++", r"(?s)needs a C\+\+ compiler, and /nowhere/g\+\+ was not found.*apt install g\+\+"),
    ],
)
def test_compiler_error_is_shown(compiler, words, empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NequIPMDError, match=words):
        build_module_function()
    assert not [p for p in empty_cache.iterdir() if p.is_dir()], "a failed build leaves no folder"


def test_a_full_disk_is_no_fault_of_the_compiler(empty_cache, monkeypatch, tmp_path, capfd):
    """The error names the folder and is not remembered: the next start tries again."""
    compiler = tmp_path / "full"
    compiler.write_text("#!/bin/sh\necho 'fatal error: cannot write x.o: No space left on device' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert main(["build"]) == 1
    message = capfd.readouterr().err
    assert f"in {empty_cache}: No space left on device" in message and "compiler" not in message
    assert not list(empty_cache.glob("*.failed"))


def test_a_cache_that_cannot_be_made(monkeypatch, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["build"]) == 1
    assert "Not a directory" in capfd.readouterr().err
    plugin_path()
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_what_is_left_of_a_killed_build(empty_cache, monkeypatch):
    """Empty files do not count as a plugin, and the next build removes temporary folders."""
    folder = empty_cache / Installation.find().key()
    folder.mkdir(parents=True)
    for name in (build_module.PLUGIN, build_module.ENGINE):
        (folder / name).touch()
    scratch = empty_cache / f".{folder.name}.killed"
    scratch.mkdir()

    def compile_again(installation, target):
        assert target == folder and not scratch.exists()
        for name in (build_module.PLUGIN, build_module.ENGINE):
            (target / name).write_text("built")

    monkeypatch.setattr(build_module, "_compile", compile_again)
    assert not build_module.is_built(folder)
    assert build_module_function() == folder and build_module.is_built(folder)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lammps": "/nowhere"}, "NEQUIP_MD_LAMMPS_ROOT"),
        ({"mpi_include": "/nowhere"}, "no mpi.h in /nowhere"),
    ],
)
def test_wrong_folders(arguments, words, empty_cache):
    with pytest.raises(NequIPMDError, match=words):
        build_module_function(**arguments)


def test_key_depends_on_everything(monkeypatch, tmp_path):
    here = Installation.find()
    keys = {here.key()}
    monkeypatch.setenv("CXX", "another-compiler")
    keys.add(here.key())
    for change in ("torch", "lammps", "mpi_include", "source"):
        keys.add(Installation(**{**here.__dict__, change: tmp_path}).key())
    assert len(keys) == 6
    assert {"pair_nequip.cpp", "nequip_md_engine.h", "network.cpp", "FindNequIPMDTorch.cmake"} <= {
        p.name for p in here.sources()
    }


def test_entry_point_is_light(plugin_folder):
    """``lmp`` asks for the folder at every start, so this must not import large packages."""
    code = (
        "import sys, nequip_md.lammps as m\nprint(m.plugin_path())\n"
        "assert not {'torch', 'numpy', 'ase'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(plugin_folder)


def test_plain_lmp_finds_the_plugin(plugin_folder, lj_artifact, tmp_path):
    """No environment variable, no plugin command; the commands tell the same folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAMMPS", "LD_"))}
    (tmp_path / "in.plain").write_text(SYSTEM.start(tmp_path) + nequip(lj_artifact) + "run 0\n")
    run = subprocess.run(
        [f"{sysconfig.get_path('scripts')}/lmp", "-in", "in.plain"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0 and "Pair style nequip: lennard-jones model" in run.stdout, run.stdout + run.stderr


def test_info(plugin_folder, capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert str(plugin_folder) in text and "(built)" in text


START = """
from mpi4py import MPI
import nequip_md.lammps
world = MPI.COMM_WORLD
half = world.Split(color=world.rank % 2)
lmp = nequip_md.lammps.start(comm=half, args=["-log", "none", "-screen", "none"])
assert lmp.extract_setting("world_size") == half.size
lmp.commands_string(open("in.start").read())
print(f"rank {world.rank} of {world.size}, {half.size} in its world: {lmp.get_thermo('pe'):.12f}", flush=True)
lmp.close()
"""


def test_start_on_a_communicator(native_energy, lj_artifact, tmp_path):
    """Two LAMMPS instances side by side in one Python program, each on half of the ranks."""
    (tmp_path / "in.start").write_text(SYSTEM.start(tmp_path) + nequip(lj_artifact) + "run 0 post no\n")
    (tmp_path / "start.py").write_text(START)
    outcome = run_program([sys.executable, "-m", "mpi4py", "start.py"], tmp_path, ranks=4)
    assert outcome.status == 0, outcome.text
    energies = [float(e) for e in re.findall(r"2 in its world: (-?\d+\.\d{12})", outcome.text)]
    assert len(energies) == 4
    assert all(abs(e - native_energy) < 1e-8 for e in energies)


def test_start_without_mpi4py(native_energy, lj_artifact, tmp_path):
    """In a plain Python process, twice in a row."""
    (tmp_path / "in.start").write_text(SYSTEM.start(tmp_path) + nequip(lj_artifact) + "run 0 post no\n")
    code = (
        "import nequip_md.lammps as m\nfor _ in range(2):\n"
        "    lmp = m.start(args=['-log', 'none', '-screen', 'none'])\n"
        "    lmp.commands_string(open('in.start').read()); print(repr(lmp.get_thermo('pe'))); lmp.close()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(abs(float(line) - native_energy) < 1e-8 for line in run.stdout.split())


def test_torch_and_lammps_in_one_process(native_energy, lj_artifact, tmp_path):
    """torch imported before LAMMPS: its libraries, OpenMP among them, are there first."""
    (tmp_path / "in.start").write_text(
        SYSTEM.start(tmp_path) + nequip(lj_artifact, keywords="threads 2") + "run 0 post no\n"
    )
    code = (
        "import torch\ntorch.set_num_threads(2); torch.randn(300, 300) @ torch.randn(300, 300)\n"
        "import nequip_md.lammps as m\n"
        "lmp = m.start(args=['-log', 'none', '-screen', 'none'])\nlmp.commands_string(open('in.start').read())\n"
        "print(repr(lmp.get_thermo('pe')), torch.get_num_threads())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    energy, threads = run.stdout.split()[-2:]
    assert abs(float(energy) - native_energy) < 1e-8


@pytest.fixture(scope="module")
def native_energy(tmp_path_factory) -> float:
    """Energy by lj/cut plus the model's isolated-atom energies."""
    folder = tmp_path_factory.mktemp("native_energy")
    outcome = run_lammps(SYSTEM.start(folder) + NATIVE + "run 0 post no\nprint 'energy $(pe:%.14f)'\n", folder)
    assert outcome.status == 0, outcome.text
    energy = float(outcome.text.split("energy ")[-1].split()[0])
    return energy + sum({1: -1.5, 2: -0.25}[t] for t in SYSTEM.types)
