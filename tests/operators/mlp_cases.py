"""Cases of the operators of MLPs, and of products with matrices."""

from __future__ import annotations

import torch

from operators import formulas
from operators.cases import Array, Case, Graph, Group, matrix, rows_of_all_sizes, scaled, silu_derivatives

TOLERANCE = {
    "reference": {"fp64": 1e-13},
    "triton": {"fp32": 4e-6, "tf32": 4e-3},
    "hopper references": {"fp32": 6e-6, "tf32": 1e-2},
    "hopper": {"fp32": 6e-6, "tf32": 1e-2},
}
"""For two layers."""
PRECISIONS = ("fp32", "tf32")
ROWS = Graph((9, 0, 17, 1, 12, 5, 20, 0, 6), 0)
"""70 rows, and nine atoms."""


def case(
    operator: str, gradients: tuple[str, ...] = (), about: str = "", layers: int = 2, loose=(), once=False, **arguments
):
    tolerance = {
        backend: {precision: most * max(1, layers / 2) for precision, most in by_precision.items()}
        for backend, by_precision in TOLERANCE.items()
    }
    formula = getattr(formulas, operator)
    return Case(operator, arguments, tolerance, gradients, bool(gradients), formula, about, tuple(loose), once)


def hidden(widths: list[int], layers: list[int], energies: bool = True) -> list[Case]:
    """The operators for any number of layers."""
    shapes = zip([sum(widths), *layers], layers)
    weights = [Array(shape, matrix(), constant=True) for shape in shapes]
    # rows of very different sizes: each has its own scale. With rows alike, every result is as accurate
    uneven, even = ([Array(("edges", k), fill) for k in widths] for fill in (rows_of_all_sizes, scaled(1.0)))
    g = Array(("edges", layers[-1]), rows_of_all_sizes)
    d = [Array(("edges", n), silu_derivatives, "derivative") for n in layers]
    v, r = Array((layers[-1],), constant=True), Array((sum(widths),), constant=True)
    common = {"layers": len(layers)}
    by_all, by_readout = ("parts", "weights"), ("parts", "weights", "v", "r")
    slopes = range(1, 1 + len(layers))
    cases = [
        case("mlp_hidden", by_all, "rows of all sizes", **common, loose=slopes, parts=uneven, weights=weights),
        case("mlp_hidden", by_all, **common, parts=even, weights=weights),
        case(
            "mlp_hidden_backward",
            ("g", "derivatives", "weights"),
            **common,
            g=g,
            derivatives=d,
            weights=weights,
            widths=widths,
        ),
    ]
    if not energies:
        return cases
    factor, scalars = Array(("edges",)), Array(("edges",), scaled(3.0))
    readout = {"weights": weights, "v": v, "r": r}
    by_parts = range(1, 1 + len(widths))
    return [
        *cases,
        case("mlp_energy", (), "rows of all sizes", **common, loose=by_parts, parts=uneven, **readout, factor=None),
        case("mlp_energy", (), "factor", **common, parts=even, **readout, factor=factor),
        case("mlp_readout", by_readout, **common, once=True, parts=even, **readout),
        case(
            "mlp_readout_backward",
            ("g", "derivatives", "weights", "v", "r"),
            **common,
            once=True,
            g=scalars,
            derivatives=d,
            **readout,
            widths=widths,
        ),
    ]


def two_layers(widths: list[int], inner: int, outer: int, lasts: tuple[int, ...]) -> list[Case]:
    """:func:`hidden` for two layers, without and with matrices that read the second layer."""
    return [*hidden(widths, [inner, outer]), *hidden_dense(widths, inner, outer, lasts)]


def hidden_dense(widths: list[int], inner: int, outer: int, lasts: tuple[int, ...]) -> list[Case]:
    """Two layers and what reads the second."""
    inputs = sum(widths)
    uneven = [Array(("edges", k), rows_of_all_sizes) for k in widths]
    g = Array(("edges", outer), rows_of_all_sizes)
    d1, d2 = (Array(("edges", n), silu_derivatives, "derivative") for n in (inner, outer))
    w1, w2 = Array((inputs, inner), matrix(), constant=True), Array((inner, outer), matrix(), constant=True)
    found = []
    for last in lasts:
        matrices = {"w1": w1, "w2": w2, "w3": Array((outer, last), matrix(), constant=True)}
        dy, about = Array(("edges", last), scaled(10.0)), f"{last} columns"
        found += [
            case("mlp_hidden_dense", (), about, loose=(2, 3), parts=uneven, **matrices),
            case("mlp_hidden_dense_backward", (), about, g=g, dy=dy, d1=d1, d2=d2, **matrices, widths=widths),
        ]
    return found


def one_layer(widths: list[int], inner: int) -> list[Case]:
    """Products with one matrix, and with one for each order."""
    inputs = sum(widths)
    w = Array((inputs, inner), matrix(), constant=True)
    orders = Array((4, widths[0], inner), matrix(), constant=True)
    x, y = Array(("edges", inputs), rows_of_all_sizes), Array(("edges", inner), rows_of_all_sizes)
    found = [
        case("dense", ("x", "w"), once=True, x=x, w=w, transposed=False),
        case("dense", ("x", "w"), "transposed", once=True, x=y, w=w, transposed=True),
    ]
    for k, transposed in ((widths[0], False), (inner, True)):
        x, about = Array(("centres", 16, k)), "transposed" if transposed else ""
        found.append(case("mix_orders", ("x", "w"), about, once=True, x=x, w=orders, transposed=transposed))
    return found + [
        Case(**{**vars(c), "about": f"one layer {c.about}".strip(), "once": True})
        for c in hidden(widths, [inner], energies=False)
    ]


TWO_LAYERS = {
    "medium": ([64, 64], 256, 256, (64,)),
    "16 and 24": ([16, 24], 40, 32, (48, 160)),
    "first": ([32], 64, 64, (256,)),
    "three parts": ([64, 64, 64], 128, 64, (48, 160)),
    "four parts": ([48, 16, 16, 16], 64, 96, (48, 160)),
    "large": ([64, 128, 128, 128], 512, 512, (48,)),
    "three of 64": ([64, 64, 64], 256, 256, (128,)),
    "odd": ([24, 8, 40], 72, 16, (136,)),
    "wide input": ([128, 64, 64], 128, 192, (8,)),
}
"""Widths of the input's parts, of the two layers, columns of the matrices that read the second."""
MORE_COLUMNS = {"medium": (*TWO_LAYERS["medium"][:3], (48, 160)), "first": (*TWO_LAYERS["first"][:3], (48, 160))}
"""Columns that make no whole blocks."""
DEEPER = (
    ([64, 128, 100], [512, 512, 512]),
    ([30], [300, 500]),
    ([30], [300, 520]),
    ([32, 16], [64, 96, 48]),
    ([32], [64, 64, 512, 320]),
    ([128, 128], [512, 256]),
)
"""Widths of MLPs that run layer by layer, as two layers do not fit into one kernel, and of one that combines both forms."""
FEW_ROWS_AND_MANY = (132, 2, 1)
"""Multiprocessors of GPUs on which the rows of these cases take the tile of 16 rows, that of 64 rows, or the one for many rows."""
FEW_ROWS_ALONE = ("large", "three of 64", "odd", "wide input")
"""MLPs that are tested with one tile only, as they run layer by layer or in tiles of other cases."""


# ---- limits of the floating-point range ------------------------------------------------------------------------------


def silu_arguments(shape, generator, graph):
    """Rows with one nonzero number each, at which silu or its derivative reaches a limit."""
    values = torch.tensor([-1e15, -200.0, -90.0, -1.0, 0.0, 1.0, 90.0, 1e15], dtype=torch.float64)
    return torch.diag(values)[torch.arange(shape[0]) % 8]


def identity(shape, generator, graph):
    return torch.eye(*shape, dtype=torch.float64)


def limits() -> list[Case]:
    """Cases at the limits of the range: rows beyond 65,504, the largest fp16 number, keep the accuracy of fp32; where exp overflows,
    silu is 0 or x and its derivative 0 or 1."""
    found, weights = [], [Array((64, 64), constant=True)] * 2
    for size in (1e-12, 1e-6, 1e6, 1e17):
        about, numbers = f"numbers of {size}", scaled(size)
        matrices = {"w": Array((64, 48), constant=True), "transposed": False}
        found.append(case("dense", ("x", "w"), about, x=Array(("edges", 64), numbers, about=about), **matrices))
        # small inputs give silu(x) ~ x / 2, so the network scales with them; for large arguments silu is the identity or zero
        parts = [Array(("edges", 32), numbers, about=about)] * 2
        found.append(case("mlp_hidden", ("parts", "weights"), about, loose=(1, 2), parts=parts, weights=weights))
    x, units = Array(("edges", 8), silu_arguments), [Array((8, 8), identity, constant=True)] * 2
    return [*found, case("mlp_hidden", ("parts", "weights"), "limits of silu", parts=[x], weights=units)]


def groups() -> list[Group]:
    small = [*two_layers([3, 2], 4, 3, (2,)), *one_layer([3, 2], 4)]
    return [
        Group("mlp, 3 and 2", small, Graph((2, 0, 3), 0), PRECISIONS, derivatives=True),
        *(
            Group(
                f"mlp, {name}",
                [*two_layers(*sizes), *one_layer(*sizes[:2])],
                ROWS,
                PRECISIONS,
                multiprocessors=FEW_ROWS_AND_MANY[: 1 if name in FEW_ROWS_ALONE else 3],
            )
            for name, sizes in TWO_LAYERS.items()
        ),
        *(
            Group(
                f"mlp, {name}, more columns",
                hidden_dense(*sizes),
                ROWS,
                PRECISIONS,
                multiprocessors=FEW_ROWS_AND_MANY,
            )
            for name, sizes in MORE_COLUMNS.items()
        ),
        *(
            Group(
                f"mlp, {sum(widths)} to {', '.join(map(str, layers))}",
                hidden(widths, layers, energies=len(layers) > 1),
                Graph((140,), 0),
                PRECISIONS,
            )
            for widths, layers in DEEPER
        ),
        Group("mlp, limits", limits(), Graph((40,), 0), ("fp32",)),
    ]
