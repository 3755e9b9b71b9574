"""A graph that is traced with symbolic sizes holds for all of them, or the size that it depends on is named."""

from __future__ import annotations

import pytest
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.kernels import Backend
from nequip_md.lowering.trace import symbolic, trace_function


def traced(function, *lengths, names):
    tensors = [torch.arange(float(length)) for length in lengths]
    return trace_function(function, symbolic(tensors, [{0: name} for name in names]), Backend())


def test_sizes_of_one_name_are_equal_and_vary():
    def function(x, y, ptr):
        return (x * y + ptr[1:].sum(), torch.zeros(x.shape[0] + 1) + ptr)

    graph = traced(function, 6, 6, 7, names=("atoms", "atoms", "atoms + 1"))
    for length in (2, 5, 30):
        inputs = torch.rand(length), torch.rand(length), torch.rand(length + 1)
        for got, expected in zip(graph(*inputs), function(*inputs), strict=True):
            torch.testing.assert_close(got, expected)


def constant(x, y):
    return (x * int(x.shape[0]),)


def branch(x, y):
    return (2 * x if x.shape[0] > 4 else x,)


def pairs(x, y):
    return (x.reshape(-1, 2).sum(1),)


def equal(x, y):
    return (x + y,)


@pytest.mark.parametrize(
    ("depends", "reason"),
    [
        (constant, "the number of atoms was taken for 6"),
        (branch, "it was assumed that atoms > 4"),
        (pairs, r"it was assumed that Eq\(.*atoms.*2.*\)"),
        (equal, "the number of edges was taken for atoms"),
    ],
)
def test_a_size_that_matters_is_named(depends, reason):
    with pytest.raises(NequIPMDError, match=f"for batches of any size: {reason}.*; its forward must not branch"):
        traced(depends, 6, 6, names=("atoms", "edges"))
