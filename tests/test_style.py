"""Python follows ruff, C++ and CUDA clang-format; ``make format`` mends what these find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "docs", "examples", "export", "nequip_md", "pair_style", "tests", "training")


@pytest.mark.parametrize("command", [["format", "--check", "--diff"], ["check"]], ids=" ".join)
def test_python(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cpp():
    sources = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".cpp", ".cuh", ".h")
    ]
    assert len(sources) > 50
    program = Path(sys.executable).with_name("clang-format")
    done = subprocess.run([program, "--dry-run", "-Werror", *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
