"""Compile the engine and the LAMMPS plugin into the user's cache."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nequip_md.errors import NequIPMDError, install_command
from nequip_md.lammps.installation import Installation, cache_folder

PLUGIN = "nequipplugin.so"
ENGINE = "libnequip_md_engine.so"
TAIL = 30
"""Lines of compiler output in an error message."""


def build(
    lammps: str | Path | None = None,
    mpi_include: str | Path | None = None,
    output: str | Path | None = None,
    *,
    force: bool = False,
    announce=lambda text: None,
) -> Path:
    """Compile the plugin, unless that has been done already.

    Any number of processes may call this at once: one builds, the others wait, and the folder appears complete.

    Args:
        lammps: another LAMMPS than the Python package: an installation prefix or a source tree.
        mpi_include: folder of the mpi.h that this LAMMPS was built with.
        output: the folder to make, instead of one in the user's cache.
        force: compile even if the folder is there.
        announce: called with one line before a compilation starts.

    Returns:
        The folder of ``nequipplugin.so`` and ``libnequip_md_engine.so``.

    Raises:
        NequIPMDError: something needed is not installed, or the compilation failed.
    """
    installation = Installation.find(lammps, mpi_include)
    folder = Path(output).resolve() if output else cache_folder() / installation.key()
    if is_built(folder) and not force:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + ".lock")):
        if is_built(folder) and not force:
            return folder
        announce("nequip-md: compiling pair_style nequip for this LAMMPS and torch, once; this takes about a minute")
        failure_note(folder).unlink(missing_ok=True)
        try:
            _compile(installation, folder)
        except NequIPMDError as error:
            failure_note(folder).write_text(str(error))
            raise
    return folder


def is_built(folder: Path) -> bool:
    return (folder / PLUGIN).is_file() and (folder / ENGINE).is_file()


def state() -> tuple[Path, str]:
    """Folder of the plugin for the installed torch and LAMMPS, and ``built``, ``not built`` or ``build failed``.

    Raises:
        NequIPMDError: something that it is built from is not installed.
    """
    folder = cache_folder() / Installation.find().key()
    return folder, "built" if is_built(folder) else "build failed" if failure_note(folder).exists() else "not built"


def failure_note(folder: Path) -> Path:
    """The file that keeps the message of a failed build, so that it is not tried again at every start of LAMMPS."""
    return folder.with_name(folder.name + ".failed")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tool(name: str) -> str:
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    if not found:
        raise NequIPMDError(
            f"building the LAMMPS plugin needs {name}, which is not installed; {install_command('lammps')}"
        )
    return found


def _compile(installation: Installation, folder: Path) -> None:
    cmake, ninja = _tool("cmake"), _tool("ninja")
    # in the folder's parent, so that the last step is a rename within one file system
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        tree, result = Path(scratch) / "build", Path(scratch) / "result"
        _run(
            [
                cmake,
                "-G",
                "Ninja",
                "-S",
                installation.source,
                "-B",
                tree,
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DCMAKE_INSTALL_PREFIX={result}",
                f"-DNEQUIP_MD_CMAKE_DIR={installation.modules}",
                f"-DNEQUIP_MD_TORCH_ROOT={installation.torch}",
                f"-DNEQUIP_MD_LAMMPS_ROOT={installation.lammps}",
                f"-DNEQUIP_MD_MPI_INCLUDE_DIR={installation.mpi_include}",
            ]
        )
        _run([cmake, "--build", tree, "--target", "install"])
        if folder.exists():
            folder.rename(Path(scratch) / "replaced")
        result.rename(folder)


def _run(command: list) -> None:
    process = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if process.returncode:
        output = "\n".join(process.stdout.splitlines()[-TAIL:])
        raise NequIPMDError(
            f"building the LAMMPS plugin failed; it needs a C++ compiler (Debian and Ubuntu: apt install g++). "
            f"The command was\n  {' '.join(map(str, command))}\nand its output ended with\n{output}"
        )
