"""Export of a checkpoint to one compiled, checked artifact, as ``nequip-md-export`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nequip_md.errors import NequIPMDError


def export_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    types: Sequence[str] | None = None,
    allow_pickle: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Compile a checkpoint of any kind, check the artifact against the eager model, and keep it only if it agrees.

    Takes most of a minute, and needs a C++ compiler.

    Args:
        checkpoint: a path that :func:`nequip_md.load_checkpoint` accepts.
        output: the ``.pt2`` file to write. An existing file is replaced at the end, in one step.
        device: ``cpu`` or ``cuda``, the device that the artifact will run on. For ``cuda``, export on a machine with the
            GPU that it will run on.
        precision: arithmetic of the network: ``fp64``, ``fp32`` or ``tf32`` (CUDA only). Distances (angstrom) and
            energies (eV) are always float64.
        types: names of the model's types to keep, for structures that have no others; their order does not matter. None keeps
            all.
        allow_pickle: permit upstream files whose format executes code stored in them.
        report: called with a line of text after each step.

    Returns:
        ``output`` as a path.

    Raises:
        NequIPMDError: the input is refused, there is no compiler or no GPU, the file cannot be written, or the artifact differs
            from the model. Then, and when the export is interrupted, ``output`` is not changed.
    """
    from nequip_md.inductor_cache import use_private_cache

    use_private_cache()  # first, as some modules of torch create the shared folder when they are imported
    import torch

    from nequip_md.artifact import load_artifact
    from nequip_md.artifact.metadata import PRECISIONS
    from nequip_md.checkpoint import checkpoint_sha256, load, read_info
    from nequip_md.export.metadata import model_metadata
    from nequip_md.export.package import artifact_target, check_target, compile_model
    from nequip_md.export.validate import validate_artifact
    from nequip_md.model import keep_types, with_dtype
    from nequip_md.public_models import local_file

    output = Path(output)
    report = report or (lambda line: None)
    check_target(output, device)
    if precision not in PRECISIONS:
        raise NequIPMDError(f"precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    checkpoint = local_file(checkpoint)
    if os.path.exists(output) and os.path.exists(checkpoint) and os.path.samefile(output, checkpoint):
        raise NequIPMDError(f"{output} is the checkpoint itself; give the artifact another name")
    if precision == "tf32" and device != "cuda":
        raise NequIPMDError(
            "precision tf32 is arithmetic of NVIDIA's tensor cores; use --device cuda, or fp32 on the CPU"
        )
    start = time.perf_counter()
    with artifact_target(output) as unfinished:
        model = load(checkpoint, allow_pickle=allow_pickle)
        every_type = model.type_names
        if types is not None:
            model = keep_types(model, types)
        config = model.config
        if precision == "fp64" and config.dtype == "float32":
            report("note: the checkpoint's weights are float32; fp64 evaluates the same weights in float64")
        parameters = sum(p.numel() for p in model.parameters())
        report(
            f"read {checkpoint}: {config.kind}, types {' '.join(config.type_names)}, cutoff {config.cutoff} angstrom, {parameters:,} parameters"
        )
        if config.type_names != every_type:
            report(f"kept {len(config.type_names)} of the {len(every_type)} types of the checkpoint")
        model = with_dtype(model, PRECISIONS[precision])
        if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
            raise NequIPMDError(
                f"{checkpoint} has weights that are infinite or not a number in {precision} ({', '.join(broken[:5])}), so every "
                "energy would be; its training has diverged: take an earlier checkpoint"
            )
        metadata = model_metadata(
            config,
            precision=precision,
            device=device,
            checkpoint_sha256=checkpoint_sha256(checkpoint),
            training=read_info(checkpoint, allow_pickle=allow_pickle).training,
            checkpoint_type_names=every_type,
        )
        content, plain = compile_model(model, metadata, device)
        unfinished.write_bytes(content)
        for sentence in plain:
            report(f"note: not fused: {sentence}")
        compiled = time.perf_counter()
        report(f"compiled for {device}, {precision}: {compiled - start:.1f} s")
        results = validate_artifact(
            load_artifact(unfinished), reference_model=model.to(torch.device(device)), quick=True
        )
        failed = [r for r in results if not r.passed]
        if failed:
            reasons = "; ".join(f"{r.name}: {r.measured:.3g}, allowed {r.tolerance:.3g}" for r in failed)
            raise NequIPMDError(
                f"the compiled model differs from the checkpoint ({reasons}); {output} was not written. Please report this "
                "with the model's configuration"
            )
        report(
            f"checked against the model in eager mode: {len(results)} checks passed, {time.perf_counter() - compiled:.1f} s"
        )
    report(f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s in all")
    return output
