"""How the C library's allocator deals with the buffers of a step, which are the same at the next."""

from __future__ import annotations

import ctypes
import os

_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST = 2**31 - 1
_LARGEST_OF_OLD_GLIBC = 32 << 20


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next step instead of given back to the system, which would clear every page anew.

    For glibc only; other allocators have their own rules. What the user has set in the environment (``MALLOC_*_`` or
    ``GLIBC_TUNABLES``) is left alone.

    Returns:
        Whether anything was changed.
    """
    if any(name in os.environ for name in _VARIABLES) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    library.mallopt(_TRIM_THRESHOLD, _LARGEST)
    if not library.mallopt(_MMAP_THRESHOLD, _LARGEST):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    return True
