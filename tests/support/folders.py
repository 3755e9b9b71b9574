"""Unusable folders for temporary files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_MOUNTED = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o "$0" tmpfs "$TMPDIR" && exec "$@"',
]


def in_mounted_folder(options: str, command: list, folder: Path) -> subprocess.CompletedProcess:
    """Run a command whose ``TMPDIR`` is a file system of its own, mounted with these options in a name space of its own."""
    mounted = folder / "mounted"
    mounted.mkdir()
    environment = {**os.environ, "TMPDIR": str(mounted), "OMP_NUM_THREADS": "1"}
    probe = subprocess.run([*_MOUNTED, options, "true"], env=environment, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.strip()}")
    return subprocess.run([*_MOUNTED, options, *map(str, command)], env=environment, capture_output=True, text=True)
