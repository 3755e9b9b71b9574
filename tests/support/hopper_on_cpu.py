"""The CUDA C++ kernels for Hopper on a CPU: compiled by g++ with hopper.h in place of ptx.cuh, run on threads that take turns.

This tests indices, the order of weight blocks, barriers and scales where there is no GPU. Races, and the PTX itself, can be tested on a
GPU only.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch

from nequip_md.kernels.hopper import operators
from nequip_md.kernels.hopper.instances import Instances

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from hopper_kernels import SIDE, THREADS, Pointers, packed

SUPPORT = Path(__file__).resolve().parent


def compile_kernels(instances: Instances, folder: Path) -> ctypes.CDLL:
    """Compile a library with a function ``run_<kernel>`` for each instance."""
    source = folder / "kernels.cpp"
    text, ptx = instances.source(), (files("nequip_md.kernels.hopper") / "ptx.cuh").read_text()
    assert text.count(ptx) == 1
    source.write_text(
        text.replace(ptx, '#include "hopper.h"\n') + "".join(f"EMULATED({name})\n" for name in instances.names())
    )
    options = [
        "-std=c++20",
        "-O2",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-unused-variable",
        "-shared",
        "-fPIC",
        "-I",
        SUPPORT,
    ]
    subprocess.run(["g++", *options, source, "-o", folder / "kernels.so"], check=True, text=True, capture_output=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


class OnThreads(torch.fx.Interpreter):
    """Runs a graph with the kernels in place of the operators' references, launched as launch.cpp does.

    Args:
        active: number of warpgroups of an MLP kernel that compute.
        most: most thread blocks of an MLP kernel; each has several tiles if they are too few.
        warps: number of warps that share the edges of a centre.
    """

    def __init__(self, module, instances, library, active=1, most=1, warps=8):
        super().__init__(module)
        self.library, self.names = library, list(instances.names())
        self.active, self.most, self.warps = active, most, warps

    def call_function(self, target, args, kwargs):
        expected = super().call_function(target, args, kwargs)
        if target not in operators.OPERATORS:
            return expected
        # elements that a kernel fails to write stay NaN
        single = isinstance(expected, torch.Tensor)
        results = [torch.full_like(result, float("nan")) for result in ([expected] if single else expected)]
        args = [arg.contiguous() if isinstance(arg, torch.Tensor) else arg for arg in args]
        four, rows = Pointers.of(args[:4]), args[0].shape[0]
        # arguments, rows of an MLP or None, thread blocks, threads
        if target == operators.ENERGY:
            energy, *gradients = results
            scratch = torch.empty(2 * self.most * -(-args[11] // SIDE), SIDE, SIDE)
            launch = [four, Pointers.of(gradients), *args[4:10], energy, scratch], rows
        elif target == operators.HIDDEN:
            h, y, d1, d2 = results
            launch = [four, *args[4:8], h, d1, d2, y], rows
        elif target == operators.HIDDEN_BACKWARD:
            launch = [Pointers.of(results), *args[:8]], rows
        elif target == operators.CONTRACT_GRADIENT:
            launch = (
                [four, *args[4:6], Pointers.of(args[6:10]), args[10], *results],
                None,
                len(args[10]) - 1,
                32 * self.warps,
            )
        elif target == operators.CONTRACT_MOMENT:
            launch = [Pointers.of(args[:1]), *args[1:4], *results], None, len(args[3]) - 1, 32 * self.warps
        else:
            launch = [*args[:3], *results, ctypes.c_longlong(rows)], None, -(-rows * args[0].shape[2] // 128), 128
        self.launch(self.names[args[-1]], *launch)
        return results[0] if single else tuple(results)

    def launch(self, name, arguments, rows, programs=None, threads=THREADS):
        if rows is not None:
            programs = min(self.most, -(-rows // (self.active * SIDE)))
            arguments = [*arguments, ctypes.c_longlong(rows), ctypes.c_int(self.active)]
        assert getattr(self.library, f"run_{name}")(packed(arguments), programs, threads), (
            f"{name}: its threads wait for each other"
        )
