"""Runs that repeat to the last digit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block PyTorch takes deterministic algorithms only, if that is wanted; an operation that has none is an error.

    cuBLAS needs a workspace of fixed size for that, which ``CUBLAS_WORKSPACE_CONFIG`` names; what the user has set there is left
    alone, and the variable stays for what comes after, as cuBLAS reads it once.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(_CUBLAS, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
