"""Installations from a wheel and in place, each in a new environment, and the contents of distributions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import nequip_md

ROOT = Path(__file__).resolve().parents[1]

# run in the new environment: what can be imported, and from where
PROBE = """
import importlib.util, importlib.metadata, pathlib, sys
import nequip_md
for name in ("training", "export", "pair_style", "cmake", "tests"):
    spec = importlib.util.find_spec(name)
    assert spec is None or "site-packages" not in str(spec.origin) or name == "cmake", (name, spec)
for name in ("ops", "model", "graph", "checkpoint", "calculators", "lammps", "bench", "info", "training", "export"):
    importlib.import_module("nequip_md." + name)
from importlib.resources import files
assert (files("nequip_md") / "py.typed").is_file()
assert (files("nequip_md.kernels.cpu") / "cpu_kernels.cpp").is_file()
assert (files("nequip_md.training.report") / "template.html").is_file()
from nequip_md.lammps.installation import package_folder
for name in ("pair_nequip.cpp", "pair_nequip_intree.h", "install.cmake"):
    assert list(package_folder("nequip_md.pair_style", "").rglob(name)), name
assert list(package_folder("nequip_md.cmake", "").glob("*.cmake"))
scripts = {e.name for e in importlib.metadata.distribution("nequip-md").entry_points if e.group == "console_scripts"}
assert scripts == {"nequip-md"} | {f"nequip-md-{name}" for name in ("data", "export", "validate", "train", "evaluate", "lammps", "bench", "info")}, scripts
print(pathlib.Path(nequip_md.__file__).parent)
"""


def run(*command, **options) -> str:
    # without bytecode, which an installation in place would leave among the sources that tests compare
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(c) for c in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the project, so that nothing is built in the real one."""
    target = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "out")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def new_environment(folder: Path) -> Path:
    """A new virtual environment that sees this one's dependencies, but not this one's nequip-md; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nequip_md" not in entry.name and entry.suffix != ".pth":
            (dependencies / entry.name).symlink_to(entry)
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


PIP = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")


def build_wheel(source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", *PIP, "-w", folder, source)
    (wheel,) = folder.glob("nequip_md-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installation(request, source, tmp_path, editable):
    python = new_environment(tmp_path / "environment")
    if editable:
        run(python, "-m", "pip", "install", *PIP, "-e", source)
    else:
        run(python, "-m", "pip", "install", *PIP, request.getfixturevalue("wheel"))
    place = Path(run(python, "-P", "-c", PROBE, cwd=tmp_path).strip())
    assert (place.parent == source) == editable
    packages = next((tmp_path / "environment" / "lib").glob("python*/site-packages"))
    assert not any((packages / name).exists() for name in ("training", "export", "pair_style", "cmake"))
    assert "usage: nequip-md-export" in run(python.parent / "nequip-md-export", "--help", cwd=tmp_path)
    assert "usage: nequip-md-info" in run(python.parent / "nequip-md-info", "--help", cwd=tmp_path)
    assert "usage: nequip-md export" in run(python.parent / "nequip-md", "export", "--help", cwd=tmp_path)
    assert run(python.parent / "nequip-md", "--version", cwd=tmp_path) == f"nequip-md {nequip_md.__version__}\n"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_source_distribution(source, wheel, tmp_path):
    """It holds the whole project, tests included, and the wheel made from it is the one made from the project."""
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    copy = tmp_path / "project"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    run(sys.executable, "-c", code, tmp_path, cwd=copy)
    (distribution,) = tmp_path.glob("nequip_md-*.tar.gz")
    with tarfile.open(distribution) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    def files(folder: Path) -> set[Path]:
        made = ("PKG-INFO", "setup.cfg")
        return {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file()
            and path.name not in made
            and not any(".egg-info" in part or part == "build" for part in path.parts)
        }

    assert files(unpacked) == files(source)
    some = (
        "tests/test_packaging.py",
        "CITATION.cff",
        "nequip_md/kernels/cpu/cpu_kernels.cpp",
        "tests/support/warp.cpp",
    )
    assert {Path(name) for name in some} <= files(unpacked)
    assert contents(build_wheel(unpacked, tmp_path / "wheel")) == contents(wheel)


def test_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == nequip_md.__version__
    assert [(work["volume"], work["start"]) for work in citation["references"]] == [(13, 2453), (14, 579)]


def test_tested_versions_lie_in_the_supported_ranges():
    """constraints.txt against pyproject.toml: the tested versions can be installed with every extra."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    wanted = [requirement for text in listed if (requirement := Requirement(text)).name != "nequip-md"]
    for requirement in wanted:
        version = tested.get({"pyyaml": "PyYAML"}.get(requirement.name, requirement.name))
        assert version is None or requirement.specifier.contains(version), (str(requirement), version)
    assert {"h5py", "lmdb", "torch"} <= tested.keys() and len(wanted) > 20
