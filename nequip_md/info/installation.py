"""Versions, processor, GPUs, compiler and LAMMPS plugin of this machine: what to put into a report of a problem."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from nequip_md import __version__
from nequip_md.errors import NequIPMDError

PACKAGES = (
    "torch",
    "e3nn",
    "ase",
    "numpy",
    "scipy",
    "safetensors",
    "triton",
    "lightning",
    "lammps",
    "mpi4py",
    "mpich",
    "nequip",
    "nequip-allegro",
)


def installation_facts() -> dict[str, Any]:
    """Facts of this installation by name, JSON-like. What is absent is said, never raised."""
    return {
        "nequip-md": f"{__version__}, {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()}, {sys.executable}",
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "gpus": _gpus(),
        "compiler": _compiler(),
        "plugin": _plugin(),
    }


def cpu_name() -> str | None:
    """The processor's name as Linux gives it, None elsewhere."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found and found[1]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"name": cpu_name() or platform.machine(), "cores": cores}
    try:
        import torch
    except ImportError:
        return facts
    return {**facts, "torch_threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}


def _gpus() -> list[str] | str:
    """One line for each GPU that PyTorch can use, or why there is none."""
    try:
        import torch
    except ImportError as error:
        return f"none: torch cannot be imported ({error})"
    if torch.version.cuda is None:
        return f"none: PyTorch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:  # whatever the driver says
        return f"none: {str(error).splitlines()[0]}"
    found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return [
        f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB, "
        f"CUDA {torch.version.cuda}"
        for gpu in found
    ]


def _compiler() -> str:
    """The C++ compiler that exports and builds of the plugin would take."""
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        return f"none: {name} was not found (Debian and Ubuntu: apt install g++); exports and the plugin need it"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace")
    return f"{path}, {(done.stdout or done.stderr).partition(chr(10))[0]}"


def _plugin() -> str:
    from nequip_md.lammps.build import state

    try:
        folder, condition = state()
    except NequIPMDError as error:
        return f"none: {error}"
    return f"{condition}, {folder}"
