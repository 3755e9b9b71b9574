"""``nequip-md-export``: a checkpoint becomes one compiled, checked ``.pt2`` artifact."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nequip_md.cli import command_parser, run
from nequip_md.errors import NequIPMDError


def export(
    checkpoint: Path, output: Path, *, device: str, precision: str, allow_pickle: bool = False, report=print
) -> None:
    """Compile a checkpoint of any kind, check the artifact against the eager model, and keep it only if it agrees.

    Args:
        output: the ``.pt2`` file to write.
        device: ``cpu`` or ``cuda``.
        precision: ``fp64``, ``fp32`` or ``tf32`` (CUDA only).
        report: called with a line of text after each step.

    Raises:
        NequIPMDError: bad input, or the artifact differs from the model. Then, and when it is interrupted, ``output`` stays as it
            was.
    """
    from nequip_md.export.inductor_cache import use_private_cache

    use_private_cache()  # first, as some modules of torch make the common folder when they are imported
    import torch

    from nequip_md.artifact import load_artifact
    from nequip_md.artifact.metadata import PRECISIONS
    from nequip_md.checkpoint import checkpoint_sha256, load, read_info
    from nequip_md.export.metadata import model_metadata
    from nequip_md.export.package import artifact_target, check_target, compile_model
    from nequip_md.export.validate import validate_artifact
    from nequip_md.model import with_dtype

    check_target(output, device)
    if os.path.exists(output) and os.path.exists(checkpoint) and os.path.samefile(output, checkpoint):
        raise NequIPMDError(f"{output} is the checkpoint itself; give the artifact another name")
    if precision == "tf32" and device != "cuda":
        raise NequIPMDError(
            "precision tf32 is arithmetic of NVIDIA's tensor cores; use --device cuda, or fp32 on the CPU"
        )
    start = time.perf_counter()
    with artifact_target(output) as unfinished:
        model = load(checkpoint, allow_pickle=allow_pickle)
        config = model.config
        if precision == "fp64" and config.dtype == "float32":
            report("note: the checkpoint's weights are float32; fp64 evaluates the same weights in float64")
        parameters = sum(p.numel() for p in model.parameters())
        report(
            f"read {checkpoint}: {config.kind}, types {' '.join(config.type_names)}, cutoff {config.cutoff} angstrom, {parameters:,} parameters"
        )
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


def main() -> None:
    parser = command_parser(
        "export", "Compile a trained potential into one .pt2 file for LAMMPS, ASE and other engines."
    )
    parser.add_argument("model", type=Path, help="native checkpoint (.nqmd), upstream .ckpt or upstream .nequip.zip")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.pt2", help="the artifact to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it will run (default: cpu)")
    parser.add_argument(
        "--precision",
        choices=("fp64", "fp32", "tf32"),
        default="fp32",
        help="arithmetic of the network; distances and energies are float64 always (default: fp32)",
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them"
    )
    arguments = parser.parse_args()

    def program() -> None:
        from rich.console import Console

        console = Console(highlight=False)
        with console.status("exporting (compilation takes most of a minute)"):
            export(
                arguments.model,
                arguments.output,
                device=arguments.device,
                precision=arguments.precision,
                allow_pickle=arguments.allow_pickle,
                report=lambda line: console.print(line, soft_wrap=True, markup=False),
            )

    run(program)


if __name__ == "__main__":
    main()
