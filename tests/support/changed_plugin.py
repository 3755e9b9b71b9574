"""Builds of the LAMMPS plugin with other compiler options, and with faults in its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from nequip_md.lammps.installation import Installation
from support.lammps_run import SCRIPTS


class ChangedPlugin:
    """A copy of the sources, and what is built from it.

    Args:
        folder: an empty one.
        options: of CMake.
    """

    def __init__(self, folder: Path, *options: str):
        self.installation = Installation.find()
        self.folder, self.source, self.tree, self.objects = (
            folder,
            *(folder / name for name in ("pair_style", "build", "objects")),
        )
        shutil.copytree(self.installation.source, self.source)
        self._cmake(
            *("-G", "Ninja", "-S", self.source, "-B", self.tree),
            f"-DCMAKE_MAKE_PROGRAM={SCRIPTS / 'ninja'}",
            f"-DNEQUIP_MD_CMAKE_DIR={self.installation.modules}",
            f"-DNEQUIP_MD_TORCH_ROOT={self.installation.torch}",
            f"-DNEQUIP_MD_LAMMPS_ROOT={self.installation.lammps}",
            f"-DNEQUIP_MD_MPI_INCLUDE_DIR={self.installation.mpi_include}",
            f"-DCMAKE_PROJECT_INCLUDE={Path(__file__).with_name('few_sources.cmake')}",
            *options,
        )
        self._cmake("--build", self.tree)
        shutil.copytree(self.tree, self.objects, ignore=shutil.ignore_patterns("*.gch"))

    def build(self, file: str = "", before: str = "", after: str = "") -> Path:
        """A cache folder (XDG_CACHE_HOME) with the plugin, where the text ``before`` in a source is replaced by ``after``."""
        cache = self.folder / f"cache{len(list(self.folder.glob('cache*')))}"
        if not file:
            self._install(cache)
            return cache
        changed = self.source / file
        text, times = changed.read_text(), changed.stat()
        assert text.count(before) == 1, "the source has changed: change the fault too"
        changed.write_text(text.replace(before, after))
        try:
            self._cmake("--build", self.tree)
            self._install(cache)
        finally:
            changed.write_text(text)
            # with the old times, the objects of the unchanged sources are up to date, and the next fault is the only one
            os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
            shutil.copytree(self.objects, self.tree, dirs_exist_ok=True)
        return cache

    def _install(self, cache: Path) -> None:
        self._cmake("--install", self.tree, "--prefix", cache / "nequip-md" / "lammps" / self.installation.key())

    def _cmake(self, *arguments) -> None:
        command = [SCRIPTS / "cmake", *arguments]
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
