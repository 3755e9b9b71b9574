"""Compile the engine and the LAMMPS plugin into the user's cache."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nequip_md.errors import NequIPMDError, install_command
from nequip_md.lammps.installation import Installation, cache_folder, version

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
    announce: Callable[[str], None] = lambda text: None,
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
        NequIPMDError: something needed is not installed, the compilation failed, or its folder cannot be written to.
    """
    installation = Installation.find(lammps, mpi_include)
    folder = Path(output).resolve() if output else cache_folder() / installation.key()
    if is_built(folder) and not force:
        return folder
    try:
        return _build_locked(installation, folder, force, announce)
    except OSError as error:
        raise NequIPMDError(
            f"cannot build the LAMMPS plugin in {folder.parent}: {error.strerror or error}; make room or see to its"
            " permissions, or name another place: XDG_CACHE_HOME, or --output"
        ) from None


def _build_locked(installation: Installation, folder: Path, force: bool, announce: Callable[[str], None]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + ".lock")):
        if is_built(folder) and not force:
            return folder
        announce("nequip-md: compiling pair_style nequip for this LAMMPS and torch, once; this takes about a minute")
        failure_note(folder).unlink(missing_ok=True)
        for scratch in folder.parent.glob(f".{folder.name}.*"):  # of builds that were killed: this one has the lock
            shutil.rmtree(scratch, ignore_errors=True)
        try:
            _compile(installation, folder)
        except NequIPMDError as error:
            failure_note(folder).write_text(str(error))
            raise
    return folder


def is_built(folder: Path) -> bool:
    # a file without content is what a full disk or a failed copy leaves
    return all((folder / name).is_file() and (folder / name).stat().st_size for name in (PLUGIN, ENGINE))


def state() -> tuple[Path, str]:
    """Folder of the plugin for the installed torch and LAMMPS, and ``built``, ``not built`` or ``build failed``.

    Raises:
        NequIPMDError: something that it is built from is not installed.
    """
    folder = cache_folder() / Installation.find().key()
    return folder, "built" if is_built(folder) else "build failed" if failure_note(folder).exists() else "not built"


def built_folder() -> Path:
    """Folder of the plugin for the installed torch and LAMMPS, for ``LAMMPS_PLUGIN_PATH``.

    Raises:
        NequIPMDError: it is not built, or something that it is built from is not installed.
    """
    folder, condition = state()
    if condition != "built":
        raise NequIPMDError("the plugin is not built yet; run: nequip-md-lammps build")
    return folder


def plugin_facts() -> dict[str, str]:
    """What the plugin is built from, where it lies and whether it is built, by name.

    Raises:
        NequIPMDError: something that it is built from is not installed.
    """
    installation = Installation.find()
    folder, condition = state()
    return {
        "torch": f"{version('torch')}  {installation.torch}",
        "LAMMPS": f"{version('lammps')}  {installation.lammps}",
        "mpi.h": str(installation.mpi_include),
        "sources": str(installation.source),
        "plugin": f"{folder / PLUGIN}  ({condition})",
    }


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
        no_space = os.strerror(errno.ENOSPC)
        if no_space in process.stdout:
            raise OSError(errno.ENOSPC, no_space)  # not a fault of the sources, so the next start tries again
        named = os.environ.get("CXX")
        compilers = [named] if named else ["c++", "g++", "clang++"]
        remedy = (
            ""
            if any(map(shutil.which, compilers))
            else (
                f"; it needs a C++ compiler, and {compilers[0]} was not found (Debian and Ubuntu: apt install g++, or set CXX)"
            )
        )
        output = "\n".join(process.stdout.splitlines()[-TAIL:])
        raise NequIPMDError(
            f"building the LAMMPS plugin failed{remedy}. "
            f"The command was\n  {' '.join(map(str, command))}\nand its output ended with\n{output}"
        )
