"""Every kernel of a preset's CUDA export compiles for a Hopper GPU and fits it. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "compile_kernels.py"
SHARED_MEMORY = 227 * 1024  # bytes that a block may have on compute capability 9.0
MOST_SPILLED = 2000  # bytes of a thread; a kernel that spills much more is slower than several that do not


ALLEGRO, NEQUIP = {"contract_kernel", "hidden_backward_kernel"}, {"sum_kernel", "nodes_kernel", "edges_kernel"}


@pytest.mark.parametrize(
    ("preset", "precision", "kernels"),
    [
        ("large", "fp32", ALLEGRO),
        ("medium", "tf32", ALLEGRO),
        ("L", "fp32", NEQUIP),
    ],
)
def test_kernels_fit(preset, precision, kernels):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, SCRIPT, preset, precision], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) > 15 and kernels <= {r["kernel"] for r in results}
    for result in results:
        assert result["shared"] <= SHARED_MEMORY and result["spilled"] <= MOST_SPILLED, result
