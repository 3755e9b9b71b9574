"""The table in Triton: on the GPU where there is one, in Triton's interpreter (conftest.py) otherwise."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nequip_md.kernels import Backend
from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.backend import TritonBackend
from operators.cases import arguments, by_rows, in_norm, upcast, wrong
from operators.lowered import with_derivatives
from operators.table import GROUPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OF_TRAINING = {"channel_product_weight"}
"""Operators that have forms in graphs of training steps alone."""
TOO_WIDE = {"mlp, 30 to 300, 520": "layers are up to 512 wide"}
LEFT_TO_A_GPU = {
    "mlp, three of 64": "minutes in the interpreter, in tiles that other groups have",
    "mlp, wide input": "minutes in the interpreter, in tiles that other groups have",
}
WIDE = ("mlp, three parts", "mlp, 256 to 512, 256", "mlp, 292 to 512, 512, 512")
"""MLPs that run in fp32 alone in the interpreter. In tf32, other groups have three parts (odd), two layers in one kernel (medium)
and layer by layer (large), and more than two (32 to 64, 64, 512, 320)."""


LONG = ("convolution, l4", "convolution, vectors and tails", "convolution, 150 channels", "convolution, no parity, 70")
"""Convolutions of many statements, which run in fp64 alone in the interpreter; others run in fp32 too."""


def items():
    for name, group in GROUPS.items():
        for precision in group.precisions:
            reason = LEFT_TO_A_GPU.get(name)
            if precision == "tf32" and name in WIDE:
                reason = "the interpreter multiplies in float32: what differs in tf32 is tested with smaller MLPs"
            if precision == "tf32" and not name.startswith("mlp"):
                reason = "the interpreter multiplies in float32, whatever precision tl.dot is given: that is the test in fp32"
            if precision == "fp32" and name in LONG:
                reason = "minutes in the interpreter; the statements are those of fp64"
            marks = [pytest.mark.skip(reason)] if DEVICE == "cpu" and reason else []
            for multiprocessors in group.multiprocessors:
                yield pytest.param(name, precision, multiprocessors, marks=marks)


def test_what_runs_as_its_reference_is_said():
    for name, group in GROUPS.items():
        for precision in group.precisions:
            backend = TritonBackend(precision)
            for case in group.cases:
                values = arguments(group, case, group.graph, precision)
                left = case.operator in OF_TRAINING or name in TOO_WIDE
                assert backend.accepts(case.overload, *values) != left, f"{name}: {case.name}"
                if case.operator in OF_TRAINING:
                    assert TritonBackend(precision).for_training().accepts(case.overload, *values)


@pytest.mark.parametrize(("name", "precision", "multiprocessors"), items())
def test_results(name, precision, multiprocessors, monkeypatch):
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", multiprocessors)
    group, found = GROUPS[name], []
    for case in group.cases:
        once = case.once and multiprocessors != group.multiprocessors[0]
        if not once and name not in TOO_WIDE:
            backend = TritonBackend(precision)
            if case.operator in OF_TRAINING:
                backend.for_training()
            values = arguments(group, case, group.graph, precision, DEVICE)
            got, want = backend.call(case.overload, *values), case.overload(*upcast(values))
            found += wrong(case, got, want, case.tolerance["triton"][precision], (in_norm, by_rows))
    assert not found, "\n".join(found)


class InForms(TorchDispatchMode):
    """Mode in which operators run in the backend's forms, also within derivatives."""

    def __init__(self, backend: Backend):
        super().__init__()
        self.backend = backend

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace == "nequip_md":
            return self.backend.call(function, *arguments)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for name, group in GROUPS.items()
        if group.derivatives and name != "derivatives of convolution, no_parity"
        for precision in group.precisions
        # in tf32, silu' is stored in fp16, whose range squares exceed; such graphs are differentiated once, which the table has
        if precision != "tf32"
    ],
)
def test_derivatives(name, precision):
    """First and second derivatives of sums of squares of the results, in the forms of training steps."""
    group, found = GROUPS[name], []
    for case in group.cases:
        if case.gradients:
            values = arguments(group, case, group.graph, precision, DEVICE)
            with InForms(TritonBackend(precision).for_training()):
                got = with_derivatives(case, values)
            want = with_derivatives(case, upcast(values))
            # a chain of three
            found += wrong(case, got, want, 10 * case.tolerance["triton"][precision])
    assert not found, "\n".join(found)
