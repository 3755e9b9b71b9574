"""Calls that do nothing, or were made before, leave a traced graph; the others stay."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule

from nequip_md.kernels import Backend
from nequip_md.lowering.clean import merge_equal_calls
from nequip_md.lowering.trace import symbolic, trace_function

aten = torch.ops.aten


def operators(graph: GraphModule) -> list[str]:
    return sorted(
        node.target._schema.name for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    )


def traced(function, *inputs, dynamic=()):
    """The lowered graph of a function, whose results it keeps."""
    graph = trace_function(function, symbolic(inputs, dynamic or [{}] * len(inputs)), Backend())
    for a, b in zip(graph(*inputs), function(*inputs), strict=True):
        assert torch.equal(a, b)
    return graph


def test_calls_that_do_nothing_are_removed():
    def function(x, w):
        back = x.view(1, *x.shape).view(x.shape)
        return (torch.cat([back @ w.t().t()]).detach()[:],)

    graph = traced(function, torch.randn(5, 3), torch.randn(3, 2), dynamic=[{0: "rows"}, {}])
    assert operators(graph) == ["aten::mm"]


def test_parts_that_were_joined_are_taken_as_they_are():
    def three(x, w):
        joined = torch.cat([x @ w, 2 * x, x @ w.t()], dim=1)
        first, second, _ = joined.split([3, 3, 3], dim=1)
        return first.contiguous().sin(), second * 1.5, joined[:, 6:9].cos()

    def another(x, w):
        joined = torch.cat([x @ w, 2 * x, x @ w.t()], dim=1)
        return joined[:, :3].sin(), joined[:, 2:5].cos()

    def strided(x, w):
        joined = torch.cat([x.t(), x.t()], dim=1)
        return (joined.split([5, 5], dim=1)[1].sin(),)

    inputs = torch.randn(5, 3), torch.randn(3, 3)
    kept = ["aten::cos", "aten::mm", "aten::mm", "aten::mul", "aten::mul", "aten::sin", "aten::t"]
    assert operators(traced(three, *inputs)) == kept
    found = operators(traced(another, *inputs))
    assert found.count("aten::cat") == found.count("aten::slice") == 1
    assert "aten::cat" in operators(traced(strided, *inputs))


def test_constants_are_tensors_like_others():
    constant = torch.randn(3, 2)

    def function(x):
        return x @ constant.view(1, 3, 2).view(3, 2), torch.cat([constant]) * x[:3, :2], constant.clone() + x[:3, 1:]

    found = operators(traced(function, torch.randn(5, 3)))
    assert not {"aten::view", "aten::cat", "aten::clone"} & set(found)


def test_calls_that_do_something_stay():
    def function(x):
        columns = x.t()
        return x.view(4, 3), columns.reshape(6, 2).view(3, 4), torch.cat([columns]), x[1:], x.t()

    found = operators(traced(function, torch.randn(6, 2)))
    # the joined columns are a copy in another order; both transposes are one
    assert found.count("aten::t") == 1 and found.count("aten::cat") == 1
    assert found.count("aten::slice") == 1 and found.count("aten::view") >= 2


def test_equal_calls_are_merged():
    def function(x, w):
        first, second = torch.sin(x @ w), torch.sin(x @ w)
        return first + second, 2 * first, 2.0 * second

    assert operators(traced(function, torch.randn(4, 3), torch.randn(3, 2))) == [
        "aten::add",
        "aten::mm",
        "aten::mul",
        "aten::mul",
        "aten::sin",
    ]


def test_calls_around_a_change_in_place_stay():
    graph = Graph()
    x = graph.placeholder("x")
    made, other = (graph.call_function(aten.mul.Tensor, (x, 2.0)) for _ in range(2))
    row = graph.call_function(aten.select.int, (made, 0, 0))
    before = graph.call_function(aten.sum.default, (made,))
    graph.call_function(aten.add_.Tensor, (row, 1.0))
    after = graph.call_function(aten.sum.default, (made,))
    twice = [graph.call_function(aten.sum.default, (other,)) for _ in range(2)]
    graph.output((before, after, *twice))
    module = GraphModule(torch.nn.Module(), graph)
    merge_equal_calls(module)
    x = torch.ones(2, 3)
    assert [float(value) for value in module(x)] == [12.0, 15.0, 12.0, 12.0]
    assert operators(module).count("aten::sum") == 3
