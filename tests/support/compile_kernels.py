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
from nequip_md.lowering.trace import example_inputs, symbolic, trace_function
from nequip_md.model import energy_and_gradient
from nequip_md.model.config import ALLEGRO_PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from triton_launches import compile_launch, preset_model, recorded_launches


def launches(preset: str, precision: str) -> list[dict]:
    """The launches of an export's graph; one lowering has them all, and an export takes two to compare them."""
    # in NequIP's presets, all layers between the first and the last launch the same kernels
    layers = {} if preset in ALLEGRO_PRESETS else {"num_layers": 3}
    model = preset_model(preset, precision, **layers).requires_grad_(False)
    inputs = example_inputs(11, 0, 9, 2, model.config.cutoff, seed=1)
    dynamic = ({0: "edges"}, {1: "edges"}, {0: "atoms + 1"}, {0: "atoms"})
    with recorded_launches() as found:
        trace_function(
            lambda *tensors: energy_and_gradient(model, *tensors), symbolic(inputs, dynamic), TritonBackend(precision)
        )
    return found


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
    with ProcessPoolExecutor(2) as workers:
        for result in workers.map(compiled, launches(preset, precision)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
