"""Every kernel of a preset's CUDA export compiles for a Hopper GPU and fits it. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "compile_kernels.py"
ANALYSES = Path(__file__).parent / "support" / "kernel_analyses.py"
MACHINE_CODE = Path(__file__).resolve().parents[1] / "benchmarks" / "machine_code.py"
SHARED_MEMORY = 227 * 1024  # bytes of shared memory of a thread block on compute capability 9.0
MOST_SPILLED = 2000  # bytes for each thread; a kernel that spills much more is slower than several kernels that do not


ALLEGRO, NEQUIP = {"contract_kernel", "hidden_backward_kernel"}, {f"convolution_by_{name}" for name in "xywg"}


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


def test_each_kind_of_launch_is_analysed_once():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, ANALYSES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    # PyTorch alone analyses each of four launches twice
    assert json.loads(run.stdout) == {"same": True, "written": ["['out']"] * 4, "translations": [8, 2]}


def test_machine_code_of_two_versions_is_compared(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(MACHINE_CODE.parent)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, MACHINE_CODE, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    chosen = ("--models", "small", "--precisions", "fp64", "--backends", "triton")
    recorded = run("record", "before.json", *chosen, "--no-ptx", "--texts", "texts")
    assert recorded.returncode == 0, recorded.stderr[-3000:]
    before = json.loads((tmp_path / "before.json").read_text())
    assert before["small fp64 triton"]["launches"] >= 8
    assert "edge_moment" in (tmp_path / "texts" / "small_fp64_triton_graph.py").read_text()
    same = run("compare", "before.json", "before.json")
    assert (same.returncode, same.stdout) == (0, "small fp64 triton: equal\n")
    before["small fp64 triton"]["constants"] = "other"
    (tmp_path / "after.json").write_text(json.dumps({**before, "small fp32 triton": {}}))
    other = run("compare", "before.json", "after.json")
    assert other.returncode == 1
    assert "small fp64 triton: differs in constants\nsmall fp32 triton: only in after.json\n" == other.stdout
