"""What an installation puts where: from a wheel and in place, each in a new environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# run in the new environment: what can be imported, and from where
PROBE = """
import importlib.util, importlib.metadata, pathlib, sys
import nequip_md
for name in ("training", "export", "pair_style", "cmake", "tests"):
    spec = importlib.util.find_spec(name)
    assert spec is None or "site-packages" not in str(spec.origin) or name == "cmake", (name, spec)
for name in ("ops", "model", "graph", "checkpoint", "calculators", "lammps", "training", "export"):
    importlib.import_module("nequip_md." + name)
from importlib.resources import files
assert (files("nequip_md.ops") / "csrc" / "cpu_kernels.cpp").is_file()
from nequip_md.lammps.installation import package_folder
for name in ("pair_nequip.cpp", "pair_nequip_intree.h", "install.cmake"):
    assert list(package_folder("nequip_md.pair_style", "").rglob(name)), name
assert list(package_folder("nequip_md.cmake", "").glob("*.cmake"))
scripts = {e.name for e in importlib.metadata.distribution("nequip-md").entry_points if e.group == "console_scripts"}
assert scripts == {"nequip-md-export", "nequip-md-validate", "nequip-md-train", "nequip-md-lammps", "nequip-md-bench"}, scripts
print(pathlib.Path(nequip_md.__file__).parent)
"""


def run(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **options)
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


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installation(source, tmp_path, editable):
    python = new_environment(tmp_path / "environment")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    if editable:
        run(python, "-m", "pip", "install", *options, "-e", source)
    else:
        run(python, "-m", "pip", "wheel", *options, "-w", tmp_path, source)
        (wheel,) = tmp_path.glob("nequip_md-*.whl")
        run(python, "-m", "pip", "install", *options, wheel)
    place = Path(run(python, "-P", "-c", PROBE, cwd=tmp_path).strip())
    assert (place.parent == source) == editable
    packages = next((tmp_path / "environment" / "lib").glob("python*/site-packages"))
    assert not any((packages / name).exists() for name in ("training", "export", "pair_style", "cmake"))
    assert "usage: nequip-md-export" in run(python.parent / "nequip-md-export", "--help", cwd=tmp_path)
