"""Compile a model into one ``.pt2`` artifact with PyTorch's Ahead-of-Time Inductor."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import torch
from torch import nn

from nequip_md.errors import NequIPMDError
from nequip_md.export import inductor_cache
from nequip_md.export.trace import trace
from nequip_md.model import Potential, fuse
from nequip_md.ops import cpu, decompositions


def check_target(path: str | Path, device: str) -> None:
    """Refuse an output name or a device that cannot work, before anything slow happens.

    Raises:
        NequIPMDError: not a ``.pt2`` name, no such folder, unknown or absent device.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise NequIPMDError(f"the artifact's name must end in .pt2, not {path.name!r}")
    if not path.parent.is_dir():
        raise NequIPMDError(f"the folder {path.parent} does not exist; create it first")
    if device not in ("cpu", "cuda"):
        raise NequIPMDError(f"device {device!r} is not known; choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise NequIPMDError("an artifact for CUDA is compiled on a machine with a CUDA device, and this one has none "
                            "that PyTorch can use; export there, or use --device cpu")


def write_artifact(model: nn.Module, path: str | Path, metadata: dict[str, str], device: str = "cpu") -> list[str]:
    """Trace, compile and package a model.

    Args:
        model: any module whose ``forward(edge_vectors, edge_index, row_ptr, node_types)`` gives node energies
            (:class:`nequip_md.model.Potential`); its gradient is added here.
        path: the file to write; it appears only when it is complete.
        metadata: from :func:`nequip_md.export.artifact_metadata`.
        device: ``cpu`` or ``cuda``.

    Returns:
        What runs in its plain form though the device has a faster one, and why: one sentence for each.

    Raises:
        NequIPMDError: no such device, no compiler, or the model cannot be traced with dynamic sizes.
    """
    path = Path(path)
    check_target(path, device)
    inductor_cache.use_private_cache()
    on_cpu = device == "cpu"
    types = len(metadata["type_names"].split())
    plain: list[str] = []
    specialize = None
    if on_cpu:
        form, replaced, linked = "c++", decompositions(keep=cpu.operators()), cpu.linked_kernels
    else:
        from nequip_md.ops import cuda, hopper

        kernels = hopper.Kernels(products=1 if metadata["precision"] == "tf32" else 3)
        form, linked = "triton", kernels.linked
        on_hopper = hopper.available() and metadata["precision"] != "fp64"
        replaced = {**decompositions(keep=hopper.OPERATORS),
                    **cuda.replacements(metadata["precision"], plain, kernels if on_hopper else None)}
        specialize = kernels.specialize if on_hopper else None
        if isinstance(model, Potential):
            model = copy.deepcopy(model)
            plain += fuse(model)
            form = "triton fused" if model.fused else form
    program = trace(model, float(metadata["cutoff"]), types, device=device, decompositions=replaced,
                    message_passing=metadata["message_passing_layers"] != "0", specialize=specialize)
    if not on_cpu and kernels.instances:
        form += " hopper"
    metadata = {**metadata, "kernels": form}
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.pt2")
    options = {
        **inductor_cache.OPTIONS,
        "aot_inductor.metadata": metadata,
        # threads are decided when the artifact runs, not where it was compiled
        "cpp.dynamic_threads": True,
    }
    try:
        with linked() as options_of_kernels, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(program, package_path=str(unfinished),
                                                     inductor_configs={**options, **options_of_kernels})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return plain
