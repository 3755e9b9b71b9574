"""Parts of the Hopper kernels: layout of weights, products written out as statements, accepted sizes, declarations of launches."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import as_file, files

import pytest
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.kernels.hopper import layout, operators
from nequip_md.kernels.hopper.backend import statements
from nequip_md.kernels.hopper.instances import Instances
from nequip_md.kernels.hopper.nvrtc import compile_cuda
from nequip_md.kernels.shims import declaration, function_name
from nequip_md.kernels.static_library import build
from operators.cases import arguments
from operators.table import GROUPS


@pytest.mark.parametrize("after_product", [False, True])
def test_a_block_has_the_layout_of_the_tensor_cores(after_product):
    """A 128-byte swizzle permutes the 16-byte pieces k // 8 of row n by n mod 8 (PTX manual, asynchronous warpgroup instructions)."""
    w = torch.arange(64 * 128, dtype=torch.float32).reshape(1, 64, 128)
    blocks = layout.to_blocks(w, after_product)
    assert blocks.shape == (1, 2, 1, 64, 64)

    def place(column):
        """Thread q holds columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of 16 (PTX manual, wgmma, matrix D), which are adjacent in w."""
        q, four = column % 16 // 4, column % 4
        return column // 16 * 16 + (2 * q, 2 * q + 1, 2 * q + 8, 2 * q + 9)[four]

    for k, column in ((0, 0), (1, 0), (9, 3), (63, 64), (17, 127), (40, 70)):
        n, at = place(column), place(k) if after_product else k
        assert blocks[0, n // 64, 0, n % 64, ((at // 8) ^ (n % 8)) * 8 + at % 8] == w[0, k, column]
    assert torch.equal(layout.from_blocks(blocks, after_product), w[0])


def test_terms_as_statements():
    """The C++ statements are valid Python too, and are evaluated here with variables of the same names."""
    group = GROUPS["contractions, 2 orders of 32"]
    case = next(case for case in group.cases if case.operator == "channel_product")
    x, y, w, table, values, dim = arguments(group, case, group.graph, "fp64")
    x, y, w, values = x[:1, :, 5:6], y[:1, :, 5:6], w[:, 5:6], values.float()
    output, order = table[3].sort(stable=True)
    offsets = (output < torch.arange(dim + 1).unsqueeze(1)).sum(dim=1)
    text = statements(table[:3, order], values[order], offsets, 32)
    names = {"out": {}, "a": x.flatten(), "b": y.flatten(), "p": w.flatten()}
    # literals of C++ end in f
    exec(re.sub(r"(?<=\d)f\b", "", text).replace(";", "\n").replace(" out", "out"), names)
    assert list(names["out"]) == [32 * d for d in range(dim)]
    want = case.overload(x, y, w, table, values.double(), dim)
    assert torch.allclose(torch.stack(list(names["out"].values())), want.flatten())


def test_other_widths_are_left_to_triton():
    instances = Instances(3)
    assert instances.takes_layers([64, 64], 256, 256, 64)
    assert not instances.takes_layers([64, 60], 256, 256)
    assert not instances.takes_layers([64, 64, 64, 64, 8], 256, 256)
    assert not instances.takes_layers([64], 256, 320)
    assert not instances.takes_layers([64], 256, 256, 512)


def test_other_contractions_are_left_to_triton():
    instances = Instances(3)

    def take(orders, channels, layers, dtype=torch.float32):
        return instances.takes_contraction(torch.empty(0, orders, channels, dtype=dtype), layers)

    assert take(4, 64, 2) and take(4, 64, 1) and take(2, 32, 4)
    assert not take(4, 64, 2, torch.float64)
    assert not take(4, 64, 3) and not take(5, 32, 1) and not take(4, 128, 1) and not take(3, 48, 2)


def test_launches_are_declared_as_they_are_defined(tmp_path):
    """AOTInductor uses declarations that are generated from the schemas; a definition that differs does not compile."""
    declarations = "".join(f'extern "C" {declaration(operator, "cuda")};\n' for operator in operators.OPERATORS)
    (tmp_path / "declared.h").write_text(
        "#define USE_CUDA\n#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n" + declarations
    )
    (tmp_path / "kernels.cubin").write_bytes(b"none")
    (tmp_path / "instances.inc").write_text('{"hopper_energy_0", 1024},\n')
    with as_file(files("nequip_md.kernels")) as sources:
        build(
            tmp_path,
            "launches",
            sources / "hopper" / "launch.cpp",
            [
                f"-I{sources / 'include'}",
                "-include",
                str(tmp_path / "declared.h"),
                f'-DKERNELS="{tmp_path / "kernels.cubin"}"',
                f'-DINSTANCES="{tmp_path / "instances.inc"}"',
            ],
        )
    symbols = subprocess.run(["nm", tmp_path / "liblaunches.a"], capture_output=True, text=True, check=True).stdout
    for operator in operators.OPERATORS:
        assert f" T {function_name(operator, 'cuda')}\n" in symbols


def test_errors_of_the_compiler_are_reported():
    with pytest.raises(NequIPMDError, match="(?s)compiling the CUDA kernels failed.*kernels.cu.*no_such_type"):
        compile_cuda("no_such_type x;")
