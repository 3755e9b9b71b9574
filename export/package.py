"""Compile a model into one ``.pt2`` artifact with PyTorch's Ahead-of-Time Inductor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from nequip_md import inductor_cache
from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.kernels import backend_for
from nequip_md.kernels.static_library import compiler
from nequip_md.lowering import trace
from nequip_md.lowering.compile import compile_program


def check_target(path: str | Path, device: str) -> None:
    """Refuse an unusable output name or device before anything slow happens.

    Raises:
        NequIPMDError: the name does not end in ``.pt2``, is a folder, or its folder does not exist; the device is unknown or
            absent; or there is no C++ compiler.
    """
    path = Path(path)
    # functions of os.path, since those of Path raise an exception for names that are too long
    if os.path.isdir(path):
        raise NequIPMDError(f"{path} is a folder; give the file to write, such as {path / 'model.pt2'}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise NequIPMDError(f"{path} is a device or pipe; give a file to write")
    if path.suffix != ".pt2":
        raise NequIPMDError(f"the artifact's name must end in .pt2, not {path.name!r}")
    if not os.path.isdir(path.parent):
        raise NequIPMDError(f"the folder {path.parent} does not exist; create it first")
    if device not in ("cpu", "cuda"):
        raise NequIPMDError(f"device {device!r} is not known; choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise NequIPMDError(
            "an artifact for CUDA is compiled on a machine with a CUDA device, and this one has none "
            "that PyTorch can use; export there, or use --device cpu"
        )
    compiler()


@contextmanager
def artifact_target(path: str | Path) -> Iterator[Path]:
    """:func:`nequip_md.atomic.replacing` for an artifact; a file that cannot be written is refused when the block begins.

    Raises:
        NequIPMDError: the file cannot be written.
    """
    try:
        with replacing(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise NequIPMDError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to and that has space"
        ) from error


def write_artifact(model: nn.Module, path: str | Path, metadata: dict[str, str], device: str = "cpu") -> list[str]:
    """Trace, compile and package a model.

    Args:
        model: any module whose ``forward(edge_vectors, edge_index, row_ptr, node_types)`` gives node energies
            (:class:`nequip_md.model.Potential`); its gradient is added here.
        path: the file to write; it appears, or is replaced, only when it is complete.
        metadata: from :func:`nequip_md.export.artifact_metadata`.
        device: ``cpu`` or ``cuda``.

    Returns:
        One sentence for each part of the model that does not run in the device's fastest form, with the reason.

    Raises:
        NequIPMDError: there is no such device or no compiler, the file cannot be written, or the model cannot be traced with
            dynamic sizes.
    """
    check_target(path, device)
    with artifact_target(path) as unfinished:
        content, plain = compile_model(model, metadata, device)
        unfinished.write_bytes(content)
    return plain


def compile_model(model: nn.Module, metadata: dict[str, str], device: str) -> tuple[memoryview, list[str]]:
    """Compile a model; returns the content of the artifact and the notes that :func:`write_artifact` returns.

    Args, Raises: as there.
    """
    inductor_cache.use_private_cache()
    backend = backend_for(device, metadata["precision"])
    program = trace(
        model,
        float(metadata["cutoff"]),
        len(metadata["type_names"].split()),
        device=device,
        backend=backend,
    )
    metadata = {**metadata, "kernels": backend.kernels}
    return compile_program(program, backend, {"aot_inductor.metadata": metadata}), backend.notes
