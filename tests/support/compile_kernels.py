"""Compile, for a Hopper GPU and without one, every Triton kernel that a preset's export takes: shared memory and spills.

    python compile_kernels.py PRESET PRECISION     # a line of JSON for each kernel

A process of its own: Triton decides at its first import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nequip_md.export.trace import trace
from nequip_md.model import NequIPConfig, build_model, fuse, preset, with_dtype
from nequip_md.ops import cuda, decompositions

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


def launches(name: str, precision: str) -> list[dict]:
    """What the preset's graph would launch: kernel, types of its arguments, constants, warps and stages."""
    found = []

    def note(kernel, grid, *arguments, **constants):
        values = {**dict(zip(kernel.arg_names, arguments)), **constants}
        types, fixed = {}, {}
        for parameter in kernel.params:
            value = values[parameter.name]
            if parameter.is_constexpr:
                types[parameter.name], fixed[parameter.name] = "constexpr", value
            else:
                types[parameter.name] = POINTERS[value.dtype] if torch.is_tensor(value) else "i32"
        options = {key: constants[key] for key in ("num_warps", "num_stages") if key in constants}
        launch = {
            "module": kernel.fn.__module__,
            "kernel": kernel.fn.__name__,
            "types": types,
            "fixed": fixed,
            "options": options,
        }
        if launch not in found:
            found.append(launch)

    cuda._launch = note
    config = preset(name, type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=20.0)
    model = with_dtype(build_model(config).eval(), "float32")
    fuse(model)
    trace(
        model,
        config.cutoff,
        2,
        device="cpu",
        decompositions={**decompositions(), **cuda.replacements(precision)},
        message_passing=isinstance(config, NequIPConfig),
    )
    return found


def compiled(launch: dict) -> dict:
    kernel = getattr(import_module(launch["module"]), launch["kernel"])
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(launch["types"].values()) if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=launch["types"], constexprs=launch["fixed"], attrs=aligned)
    result = triton.compile(source, target=TARGET, options=launch["options"])
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(result.asm["ptx"])
        file.flush()
        report = subprocess.run(
            [ptxas, "-v", "--gpu-name", "sm_90a", file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    spilled = re.search(r"(\d+) bytes spill stores", report)
    sizes = {key: value for key, value in launch["fixed"].items() if value != 16}
    return {
        "kernel": launch["kernel"],
        "shared": result.metadata.shared,
        "spilled": int(spilled.group(1)),
        "sizes": sizes,
    }


def main() -> None:
    with ProcessPoolExecutor(2) as workers:
        for result in workers.map(compiled, launches(*sys.argv[1:])):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
