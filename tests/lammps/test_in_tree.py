"""Other CMake projects: LAMMPS built with the pair style in it, and a program that links the installed engine alone."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nequip_md.lammps.cli import main
from support.lammps_compare import SHIFTS, assert_same
from support.lammps_run import SCRIPTS, measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, nequip

ROOT = Path(__file__).resolve().parents[2]
CMAKE, NINJA = SCRIPTS / "cmake", SCRIPTS / "ninja"


def cmake(*arguments, ok: bool = True, limit: float = 120) -> str:
    done = subprocess.run(
        [CMAKE, *map(str, arguments)], text=True, timeout=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (done.returncode == 0) == ok, done.stdout
    return done.stdout


def configure(source: Path, build: Path, *options: str, ok: bool = True) -> str:
    return cmake("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}", "-S", source, "-B", build, *options, ok=ok)


@pytest.fixture
def options(capsys) -> list[str]:
    """What ``nequip-md-lammps intree`` prints, as a shell divides it."""
    assert main(["intree"]) == 0
    return shlex.split(capsys.readouterr().out)


def without_shifts(measured: dict) -> dict:
    """The measured values without the isolated atoms' energies."""
    shifts = [SHIFTS[t] for t in measured["types"]]
    energies = measured["energies"].copy()
    energies[:, 0] -= shifts
    return {**measured, "energy": measured["energy"] - sum(shifts), "energies": energies}


def test_another_project_is_refused(options, tmp_path):
    """A project with the right name but other targets is refused during configuration."""
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.16)\nproject(lammps CXX)\n")
    assert "there is no target lammps" in " ".join(configure(tmp_path, tmp_path / "build", *options, ok=False).split())
    without_torch = configure(tmp_path, tmp_path / "other", options[0], ok=False)
    assert "NEQUIP_MD_TORCH_ROOT" in without_torch


def test_lammps_with_the_pair_style(request, options, plugin_folder, lj_artifact, tmp_path):
    """LAMMPS built from source has the style without a plugin and the plugin's results, and its source tree is not changed."""
    source = request.config.getoption("--lammps-source")
    if not source:
        pytest.skip("builds LAMMPS, five minutes on 2 cores; name its source tree by --lammps-source")
    tree, build = Path(source).resolve(), tmp_path / "build"

    def state() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in tree.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    before = state()
    configure(
        tree / "cmake",
        build,
        *options,
        "-DBUILD_MPI=off",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}",
    )
    cmake("--build", build, "--parallel", "2", "--target", "lmp", limit=800)
    assert state() == before
    script = "clear\n".join(
        system.start(tmp_path / str(k), newton) + nequip(lj_artifact) + measurement(f"{k}_{newton}")
        for k, system in enumerate(SYSTEMS.values())
        if "processors" not in system.before
        for newton in ("on", "off")
    )
    (tmp_path / "in.test").write_text(script)
    run = subprocess.run([build / "lmp", "-in", "in.test"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "nequipplugin" not in run.stdout, run.stdout + run.stderr
    outcome = run_lammps(script, tmp_path / "plugin")
    assert outcome.status == 0, outcome.text
    names = sorted(path.stem for path in tmp_path.glob("*.dump"))
    assert len(names) >= 10
    for name in names:
        assert_same(read_measurement(tmp_path, name), without_shifts(read_measurement(tmp_path / "plugin", name)), name)


def test_program_that_links_the_engine(plugin_folder, lj_artifact, tmp_path):
    """The project of docs/engine.md, built in another folder from nothing but the installed engine."""
    manual = (ROOT / "docs" / "engine.md").read_text()
    for language, name in (("c", "crystal.c"), ("cmake", "CMakeLists.txt")):
        (tmp_path / name).write_text(re.search(rf"```{language}\n(.*?)```", manual, re.S).group(1))
    configure(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={plugin_folder}")
    cmake("--build", tmp_path / "build")
    run = subprocess.run([tmp_path / "build" / "crystal", lj_artifact], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    energy = float(re.search(r"energy = (\S+)", run.stdout).group(1))
    pair = [4 * 0.0104 * ((3.4 / r) ** 12 - (3.4 / r) ** 6) for r in (5.3 / 2**0.5, 5.3, 6.0)]  # two shells, the cutoff
    assert abs(energy - (-1.5 + 6 * (pair[0] - pair[2]) + 3 * (pair[1] - pair[2]))) < 1e-9


@pytest.mark.parametrize("found", [True, False])
def test_version_of_the_engine_package(found, plugin_folder, tmp_path):
    """The package version is that of the C interface, and other versions are refused."""
    header = (plugin_folder / "include" / "nequip_md_engine.h").read_text()
    version = re.search(r"NEQUIP_MD_ABI_VERSION (\d+)", header).group(1)
    wanted = version if found else str(int(version) + 1)
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.22)\nproject(test C)\nfind_package(NequIPMDEngine {wanted} REQUIRED)\n"
    )
    text = configure(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={plugin_folder}", ok=found)
    assert found or f"version: {version}" in text, text
