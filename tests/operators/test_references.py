"""The references: comparison with independent formulas, derivatives, and PyTorch's requirements on operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nequip_md.model import build_model, preset
from nequip_md.model.spherical_harmonics import spherical_harmonics
from nequip_md.ops import references
from operators.cases import arguments, as_list, wrong
from operators.table import ELSEWHERE, GROUPS

SMALL = {name: group for name, group in GROUPS.items() if group.derivatives}
CHECKED = {f"{name}: {case.name}": (group, case) for name, group in SMALL.items() for case in group.cases}


def test_the_table_has_every_operator():
    known = {operator._schema.name.split("::")[1] for operator in references()}
    # the kernels for Hopper are operators of their own, with references of their own (test_hopper_kernels.py)
    known = {name for name in known - ELSEWHERE if not name.startswith("hopper_")}
    cases = [case for group in GROUPS.values() for case in group.cases]
    assert {case.operator for case in cases} == known
    assert {case.operator for group in SMALL.values() for case in group.cases} == known
    for case in cases:
        assert list(case.arguments) == [argument.name for argument in case.overload._schema.arguments], case.name


@pytest.mark.parametrize("name", GROUPS)
def test_formulas(name):
    group, found = GROUPS[name], []
    for case in group.cases:
        values = arguments(group, case, group.graph, "fp64")
        want = [t.detach() for t in as_list(case.formula(*values))]
        found += wrong(case, case.overload(*values), want, case.tolerance["reference"]["fp64"])
    assert not found, "\n".join(found)


def differentiated(group, case):
    """The case as a function of the tensors by which it has gradients, and these tensors."""
    names, values = list(case.arguments), arguments(group, case, group.graph, "fp64")
    tensors = []
    for name, value in zip(names, values):
        if name in case.gradients:
            tensors += [value] if isinstance(value, Tensor) else value
    tensors = [t.clone().requires_grad_() for t in tensors]

    def function(*given):
        left = list(given)
        called = [
            value
            if name not in case.gradients
            else left.pop(0)
            if isinstance(value, Tensor)
            else [left.pop(0) for _ in value]
            for name, value in zip(names, values)
        ]
        results = case.overload(*called)
        return results if isinstance(results, Tensor) else tuple(results)

    return function, tensors


@pytest.mark.parametrize("name", [name for name, (_, case) in CHECKED.items() if case.gradients])
def test_first_and_second_derivatives(name):
    group, case = CHECKED[name]
    function, tensors = differentiated(group, case)
    fast = sum(t.numel() for t in tensors) > 150
    assert torch.autograd.gradcheck(function, tensors, fast_mode=fast)
    if case.second:
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=fast)


@pytest.mark.parametrize("name", [name for name, (_, case) in CHECKED.items() if not case.gradients])
def test_no_derivative_where_none_is_promised(name):
    """PyTorch warns when such an operator is differentiated."""
    group, case = CHECKED[name]
    values = arguments(group, case, group.graph, "fp64")
    first = next(
        v if isinstance(v, Tensor) else v[0] for v in values if isinstance(v, Tensor) or isinstance(v, list) and v
    )
    first.requires_grad_()
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        sum(result.sum() for result in as_list(case.overload(*values))).backward()


@pytest.mark.parametrize("name", CHECKED)
def test_schema_and_fake_agree_with_the_reference(name):
    """opcheck: schema, aliasing, fake tensors, autograd registration, dynamic shapes."""
    group, case = CHECKED[name]
    values = arguments(group, case, group.graph, "fp64")
    for argument, value in zip(case.arguments, values):
        if argument in case.gradients:
            for tensor in as_list(value):
                tensor.requires_grad_()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(case.overload, tuple(values), test_utils=tests if case.gradients else tests[:2])


@pytest.mark.parametrize(("l_max", "p"), [(0, 6.0), (2, 2.5), (3, 1.0)])
def test_edge_embedding_is_what_a_model_composes(l_max, p):
    """Compare the operator and its gradient with autograd through a model's modules, also for edges beyond the cutoff."""
    torch.manual_seed(5)
    bessels = {"kind": "bessel", "num_bessels": 5, "bessel_trainable": True}
    model = build_model(
        preset(
            "small",
            type_names=["H", "O"],
            dtype="float64",
            l_max=l_max,
            polynomial_cutoff_p=p,
            cutoff=4.0,
            pair_cutoffs={"H": {"O": 3.0}},
            radial_embedding=bessels,
        )
    )
    with torch.no_grad():
        model.embedding.basis.roots.add_(0.3 * torch.randn(5, dtype=torch.float64))
    vectors = (2.0 * torch.randn(60, 3, dtype=torch.float64)).requires_grad_()
    edge_index = torch.stack([torch.arange(60) // 10, torch.arange(60) % 9])
    node_types = torch.arange(9) % 2
    edges, embedding = model.geometry(vectors, edge_index, node_types), model.embedding
    assert 5 < (edges.x >= 1).sum() < 55
    types = torch.cat([embedding.centre[edges.centre_type], embedding.neighbour[edges.neighbour_type]], dim=1)
    composed = types * embedding.linear(embedding.basis(edges.x)), spherical_harmonics(edges.unit, l_max)
    fused = embedding(vectors, edge_index, node_types, model.geometry.cutoffs, l_max)
    torch.testing.assert_close(fused, composed)
    cotangents = [torch.randn_like(t) for t in composed]
    sums = [sum((c * t).sum() for c, t in zip(cotangents, results)) for results in (fused, composed)]
    by = [vectors, *embedding.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(total, by) for total in sums))
