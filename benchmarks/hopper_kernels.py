"""The CUDA C++ kernels of MLPs: compare each with float64, and time it beside Triton's with its usual tile.

    python benchmarks/hopper_kernels.py --output benchmarks/results/h200_hopper_kernels.json

Needs a Hopper GPU. Shapes are those of Allegro "medium", as in kernel_variants.py: many edges, where throughput counts, and few, where the
time of one tile does. ``--source`` takes a folder with another version of the .cuh files, to compare.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton
from kernel_variants import FEW, MANY, SHAPES, Case, products_of, write_rows

from nequip_md.kernels.hopper.instances import Instances
from nequip_md.kernels.hopper.nvrtc import compile_cuda
from nequip_md.kernels.select import is_hopper
from nequip_md.kernels.triton import launcher, mlp_energy, mlp_hidden, tiles

THREADS, SIDE, MAX_DYNAMIC_SHARED = 384, 64, 8


class Pointers(ctypes.Structure):
    _fields_ = [("part", ctypes.c_void_p * 4)]

    @classmethod
    def of(cls, tensors: list[torch.Tensor]) -> Pointers:
        return cls(
            (ctypes.c_void_p * 4)(*[t.data_ptr() for t in tensors], *[tensors[0].data_ptr()] * (4 - len(tensors)))
        )


def packed(arguments: Sequence) -> ctypes.Array:
    """A kernel's arguments in the form that CUDA's driver takes: tensors by their addresses, others as values of ctypes."""
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values])
    pointers.values = values  # must live as long as the array of their addresses
    return pointers


class Driver:
    """Loads a cubin and launches one of its kernels."""

    def __init__(self, cubin: bytes, name: str, shared: int):
        torch.cuda.init()
        torch.cuda.synchronize()  # creates the CUDA context
        self.library, self.shared = ctypes.CDLL("libcuda.so.1"), shared
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.library.cuModuleLoadData(ctypes.byref(self.module), cubin))
        self.check(self.library.cuModuleGetFunction(ctypes.byref(self.function), self.module, name.encode()))
        self.check(self.library.cuFuncSetAttribute(self.function, MAX_DYNAMIC_SHARED, shared))

    @staticmethod
    def check(code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA's driver returned error {code}")

    def launch(self, programs: int, *arguments) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self.check(
            self.library.cuLaunchKernel(
                self.function, programs, 1, 1, THREADS, 1, 1, self.shared, stream, packed(arguments), None
            )
        )


def make_launch(case: Case, source: Path | None) -> Callable[[int], None]:
    """A function that launches the kernel of a case on its first ``count`` rows."""
    instances, n = Instances(products_of(case.precision)), case.named
    _, widths, *_ = SHAPES[case.name]
    parts, gradients = ([n[f"{name}{i}"] for i in range(len(widths))] for name in ("x", "dx"))
    if case.kernel is mlp_energy.energy_kernel:
        constants, _ = instances.energy_constants(widths, case.w1, case.w2, n["v"], n["r"], False)
        scratch = torch.empty(2 * launcher.MULTIPROCESSORS * n["inner"] * SIDE, device="cuda")
        arguments = [Pointers.of(parts), Pointers.of(gradients), *constants, n["factor"], n["energy"], scratch]
    elif case.kernel is mlp_hidden.hidden_kernel:
        constants, _ = instances.hidden_constants(widths, case.w1, case.w2, case.w3)
        arguments = [Pointers.of(parts), *constants, n["out"], n["d1"], n["d2"], n["y"]]
    else:
        constants, _ = instances.hidden_backward_constants(widths, case.w1, case.w2, case.w3)
        arguments = [Pointers.of(gradients), n["g"], n["dy"], n["d1"], n["d2"], *constants]
    ((name, (*_, shared)),) = instances.names().items()
    driver = Driver(compile_cuda(instances.source(source)), name, shared)

    def launch(count: int) -> None:
        active = 1 if count <= launcher.MULTIPROCESSORS * SIDE else 2
        programs = min(launcher.MULTIPROCESSORS, triton.cdiv(count, active * SIDE))
        driver.launch(programs, *arguments, ctypes.c_longlong(count), ctypes.c_int(active))

    return launch


def measure(case: Case, source: Path | None) -> dict:
    launch = make_launch(case, source)

    def error(count: int) -> float:
        for result in case.results:
            result.fill_(float("nan"))
        launch(count)
        torch.cuda.synchronize()
        return case.error(count)

    row = {
        "kernel": case.name,
        "precision": case.precision,
        "error": error(MANY),
        "few_errors": [error(count) for count in FEW],
    }
    row["many_ms"] = triton.testing.do_bench(lambda: launch(MANY), warmup=5, rep=25, return_mode="median")
    # in a CUDA graph, as in a recorded step, with inputs in the cache
    row["few_ms"] = [
        triton.testing.do_bench_cudagraph(lambda: launch(count), rep=8, return_mode="median") for count in FEW
    ]
    return row


def triton_ms(case: Case) -> float:
    """Time of Triton's kernel with the tile that an export takes for many rows."""
    _, widths, inner, outer, last = SHAPES[case.name]
    kind = {
        mlp_energy.energy_kernel: "energy",
        mlp_hidden.hidden_kernel: "hidden",
        mlp_hidden.hidden_backward_kernel: "backward_dense",
    }[case.kernel]
    constants = tiles.tiles(kind, widths, inner, outer, products_of(case.precision))
    tile = (constants["ROWS"], constants["CHUNK"], constants["num_warps"], constants["num_stages"])
    return triton.testing.do_bench(case.launch(tile, MANY), warmup=5, rep=25, return_mode="median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "tf32"), nargs="+", default=["fp32", "tf32"])
    parser.add_argument(
        "--only", choices=SHAPES, nargs="+", default=list(SHAPES), metavar="KERNEL", help=f"of {', '.join(SHAPES)}"
    )
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="with another version of the .cuh files")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not is_hopper():
        sys.exit("error: PyTorch finds no Hopper GPU here; run this on a machine with one")
    rows = []
    print(f"{'kernel':15} {'':5} {f'{MANY:,} edges':>16} {'Triton':>9} {f'{FEW} edges':>28} {'error':>8} {'of few':>8}")
    for name in options.only:
        for precision in options.precision:
            case = Case(name, precision)
            row = {**measure(case, options.source), "triton_ms": triton_ms(case)}
            rows.append(row)
            few = " ".join(f"{t:.4f}" for t in row["few_ms"])
            print(
                f"{name:15} {precision:5} {row['many_ms']:13.3f} ms {row['triton_ms']:6.3f} ms {few:>25} ms {row['error']:8.0e} "
                f"{max(row['few_errors']):8.0e}",
                flush=True,
            )
            del case
            torch.cuda.empty_cache()
    if options.output:
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
