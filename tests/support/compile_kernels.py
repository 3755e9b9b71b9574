"""Compile every Triton kernel of a preset's export for a Hopper GPU, without a GPU, and print its shared memory and spills.

    python compile_kernels.py PRESET PRECISION     # a line of JSON for each kernel

Tests run it in a process of its own, since Triton decides at its first import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

from nequip_md.kernels.triton.backend import TritonBackend

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from triton_launches import compile_launch, cuda_graph


def compiled(launch: dict) -> dict:
    result = compile_launch(launch)
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
    preset, precision = sys.argv[1:]
    _, launches = cuda_graph(preset, precision, TritonBackend(precision))
    with ProcessPoolExecutor(2) as workers:
        for result in workers.map(compiled, launches):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
