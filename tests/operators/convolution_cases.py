"""Cases of NequIP's convolution."""

from __future__ import annotations

import torch
from e3nn.o3 import wigner_3j

from nequip_md.model.nequip_irreps import split, width
from operators.cases import CENTRE, NEIGHBOUR, ROW_PTR, Array, Case, Graph, Group, Size
from operators.formulas import gradients, zeros
from support.convolution import CASES, layer

TOLERANCE = {
    "reference": {"fp64": 1e-13},
    "cpu": {"fp64": 1e-13, "fp32": 3e-6},
    "triton": {"fp64": 1e-14, "fp32": 4e-6},
}
GRAPH = Graph((3, 0, 5, 1, 0, 7))


def form(irreps, x, y, w, g, centre, neighbour):
    """F(x, y, w, g) as one sum over all indices for each path."""
    total, first_weight = 0.0, 0
    blocks = {(block.l, block.p): part for block, part in zip(irreps.messages, split(g, irreps.messages))}
    used = dict.fromkeys(blocks, 0)
    for path in irreps.paths:
        key = (path.l_out, path.p_out)
        cg = wigner_3j(path.l_in, path.l_edge, path.l_out, dtype=x.dtype) * (2 * path.l_out + 1) ** 0.5
        total = total + torch.einsum(
            "abc,eau,eb,eu,ecu->",
            cg,
            split(x, irreps.inputs)[path.source][neighbour],
            y[:, path.l_edge**2 : (path.l_edge + 1) ** 2],
            w[:, first_weight : first_weight + path.mul],
            blocks[key][centre][..., used[key] : used[key] + path.mul],
        )
        first_weight += path.mul
        used[key] += path.mul
    return total


def convolution(
    l_max: int, num_features: list[int], index: int = 1, parity: bool = True, terms: bool = False
) -> list[Case]:
    """The three operators of one layer, see :func:`support.convolution.layer`, and with ``terms`` the sums of their derivatives."""
    irreps, paths, cg = layer(l_max, num_features, index, parity)
    features, messages = width(irreps.inputs), width(irreps.messages)
    x, g = Array(("nodes", features)), Array(("centres", messages))
    y = Array(("edges", (max(path.l_edge for path in irreps.paths) + 1) ** 2))
    w = Array(("edges", sum(path.mul for path in irreps.paths)))
    graph = {"centre": CENTRE, "neighbour": NEIGHBOUR, "row_ptr": ROW_PTR, "cg": cg, "paths": paths}

    def sum_formula(x, y, w, centre, neighbour, row_ptr, *rest):
        g = zeros(len(row_ptr) - 1, messages)
        return gradients(form(irreps, x, y, w, g, centre, neighbour), g)

    def nodes_formula(y, w, g, centre, neighbour, row_ptr, cg, paths, nodes, columns):
        x = zeros(nodes, columns)
        return gradients(form(irreps, x, y, w, g, centre, neighbour), x)

    def edges_formula(x, y, w, g, centre, neighbour, *rest):
        y, w = (t.detach().requires_grad_() for t in (y, w))
        return gradients(form(irreps, x, y, w, g, centre, neighbour), y, w)

    def case(suffix, gradients, formula, arguments, about=""):
        operator = f"tensor_product_convolution{suffix}"
        return Case(operator, arguments, TOLERANCE, gradients, True, formula, about)

    lists = {"x": x, "y": y, "w": w, "g": g}

    def by(name):
        """The sum of three derivatives by an argument, for which two arrays of each other argument are given."""
        others, (columns,) = [other for other in lists if other != name], lists[name].shape[1:]

        def formula(x, y, w, g, terms, centre, neighbour, row_ptr, *rest):
            given, result = {"x": x, "y": y, "w": w, "g": g}, zeros(*shapes[name](centre, row_ptr, *rest))
            total = 0.0
            for k in range(0, len(terms), 3):
                taken = {other: given[other][place] for other, place in zip(others, terms[k : k + 3])}
                total = total + form(irreps, **{**taken, name: result}, centre=centre, neighbour=neighbour)
            return gradients(total, result)

        shapes = {
            "x": lambda centre, row_ptr, cg, paths, nodes, width: (nodes, width),
            "g": lambda centre, row_ptr, *rest: (len(row_ptr) - 1, columns),
            **dict.fromkeys("yw", lambda centre, *rest: (len(centre), columns)),
        }
        arrays = {other: [array] * 2 * (other != name) for other, array in lists.items()}
        sizes = {**({"nodes": Size("nodes")} if name == "x" else {}), "width": columns}
        arguments = {**arrays, "terms": [1, 0, 0, 0, 1, 0, 0, 0, 1], **graph, **sizes}
        return Case(f"tensor_product_convolution_by_{name}", arguments, TOLERANCE, (), False, formula)

    strided = g._replace(strided=True)
    return [
        *(by(name) for name in lists if terms),
        case("", ("x", "y", "w"), sum_formula, {"x": x, "y": y, "w": w, **graph, "width": messages}),
        case(
            "_nodes",
            ("y", "w", "g"),
            nodes_formula,
            {"y": y, "w": w, "g": g, **graph, "nodes": Size("nodes"), "width": features},
        ),
        case("_edges", ("x", "y", "w", "g"), edges_formula, {"x": x, "y": y, "w": w, "g": g, **graph}),
        case(
            "_edges",
            ("x", "y", "w", "g"),
            edges_formula,
            {"x": x, "y": y, "w": w, "g": strided, **graph},
            "strided",
        ),
    ]


def groups() -> list[Group]:
    small = Graph((2, 0, 1), 1)
    # channels are whole vectors of a processor, parts of one, both; several programs of a GPU, a part of one
    sizes = {
        **CASES,
        "vectors and tails": (3, [35, 16, 5, 8]),
        "150 channels": (1, [150, 33]),
        "no parity, 70": (2, [40, 16, 70], 1, False),
    }
    of_terms = ("no_parity", "150 channels")
    return [
        *(
            Group(
                f"derivatives of convolution, {name}",
                convolution(*CASES[name], terms=name == "vectors"),
                small,
                ("fp64",),
                derivatives=True,
            )
            for name in ("vectors", "no_parity")
        ),
        *(
            Group(f"convolution, {name}", convolution(*size, terms=name in of_terms), GRAPH, ("fp64", "fp32"))
            for name, size in sizes.items()
        ),
    ]
