"""The cache folder of Inductor: one that no other user can write to."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

from nequip_md.errors import NequIPMDError

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

OPTIONS = {"aot_inductor.precompile_headers": False, "cpp_cache_precompile_headers": False}
"""Inductor options that are needed, as Inductor otherwise reads compiled headers from its default folder despite the variable."""


def use_private_cache() -> Path:
    """Make Inductor use a private cache folder of this process, which is deleted when the process ends.

    Inductor's default is ``torchinductor_USER`` in the folder for temporary files. Another user who creates that folder first
    can put libraries there, which Inductor loads. This function must be called before Inductor is used. A folder that
    ``TORCHINDUCTOR_CACHE_DIR`` names stays in use.

    Returns:
        The folder.

    Raises:
        NequIPMDError: the folder that ``TORCHINDUCTOR_CACHE_DIR`` names belongs to another user, or others can write to it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get(_VARIABLE)
    # torch sets the variable to its default when some of its modules are imported
    if not chosen or os.path.abspath(chosen) == os.path.abspath(default_cache_dir()):
        folder = _folder_of_this_process(os.getpid())
        os.environ[_VARIABLE] = str(folder)
        return folder
    folder = Path(chosen)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NequIPMDError(
            f"{_VARIABLE} is {folder}, where other users can put code that would be run; "
            f"make it yours alone (chown, chmod go-w), or unset the variable"
        )
    return folder


@functools.cache
def _folder_of_this_process(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nequip-md-inductor-"))
    atexit.register(_delete, folder, process)
    return folder


def _delete(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child must not delete it when it ends
        shutil.rmtree(folder, ignore_errors=True)
