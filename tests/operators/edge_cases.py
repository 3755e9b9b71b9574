"""Cases of the operators over the edges and atoms of an Allegro model."""

from __future__ import annotations

import torch

from nequip_md.model import build_model, preset
from nequip_md.model.allegro import tensor_track
from nequip_md.model.clebsch_gordan import product_table
from operators import formulas
from operators.cases import CENTRE, ROW_PTR, Array, Case, Graph, Group, numbers_below, scaled

TOLERANCE = {
    "reference": {"fp64": 1e-13},
    "cpu": {"fp64": 1e-13, "fp32": 2e-6},
    "triton": {"fp64": 1e-14, "fp32": 4e-6, "tf32": 4e-3},
    "hopper references": {"fp32": 1e-6},
    "hopper": {"fp32": 2e-6},
}
GRAPH = Graph((5, 0, 37, 1, 130, 0))
SHARED_OUT = (132, 1)
"""Multiprocessors of GPUs on which several programs share the edges of one of the six centres, or one program processes them all."""
SHARING = {"edge_dot", "edge_spread", "edge_spread_add", "edge_contract"}
"""Operators whose kernels share edges in this way."""


def case(operator: str, gradients: tuple[str, ...] = (), about: str = "", **arguments) -> Case:
    """A case of an operator that has derivatives of any order or none."""
    formula, once = getattr(formulas, operator), operator not in SHARING
    return Case(operator, arguments, TOLERANCE, gradients, bool(gradients), formula, about, once=once)


# ---- sums over edges -------------------------------------------------------------------------------------------------


def sums(orders: int, channels: int) -> list[Case]:
    """Every operator between edges and centres, for this number of orders l = 0, 1, ..."""
    components = orders**2
    graph = {"centre": CENTRE, "row_ptr": ROW_PTR}
    rows, y, z = Array(("edges", channels)), Array(("edges", components)), Array(("centres", components, channels))
    w = Array(("edges", orders, channels))
    found = [case("segment_sum", ("values",), values=rows, **graph)]
    for slots in sorted({1, orders}):
        a, about = Array(("edges", slots, channels)), f"{slots} slots"
        found += [
            case("edge_moment", ("a", "y"), about, a=a, y=y, **graph),
            case("edge_dot", ("a", "z"), about, a=a, z=z, **graph),
            case("edge_spread", ("y", "z"), about, y=y, z=z, **graph, orders=slots),
        ]
    for number in (1, 2, 4):
        starts = [Array(("edges", 1, channels))] * number
        found.append(case("edge_spread_add", about=f"{number} starts", y=y, z=z, **graph, starts=starts))
    return [
        *found,
        case("edge_contract", ("w", "y", "z"), w=w, y=y, z=z, **graph),
        case("edge_contract_backward", ("g", "w", "y", "z"), g=rows, w=w, y=y, z=z, **graph),
        *contraction_sums(orders, channels, (1, 2, 4)),
    ]


def contraction_sums(orders: int, channels: int, layers: tuple[int, ...]) -> list[Case]:
    """Fused operators for the gradients of contractions in ``layers`` layers of a lowered graph."""
    components = orders**2
    g, z = Array(("edges", channels)), Array(("centres", components, channels))
    rest = {"w": Array(("edges", orders, channels)), "y": Array(("edges", components))}
    graph = {"centre": CENTRE, "row_ptr": ROW_PTR}
    return [
        case("edge_contract_moment", g=g, **rest, **graph),
        *(case("edge_contract_gradient", about=f"{k} layers", g=[g] * k, **rest, z=[z] * k, **graph) for k in layers),
    ]


# ---- products of an atom's tensors -----------------------------------------------------------------------------------


def product(table, values, paths: int, components: tuple[int, int, int], channels: int) -> list[Case]:
    """The product for a table of coefficients; ``components`` are those of the two factors and of the product."""
    first, second, dim = components
    x, y = Array(("centres", first, channels)), Array(("centres", second, channels))
    w, z = Array((paths, channels), constant=True), Array(("centres", dim, channels))
    return [
        case("channel_product", ("x", "y", "w"), x=x, y=y, w=w, table=table, values=values, dim=dim),
        case("channel_product_weight", ("x", "y", "z"), x=x, y=y, z=z, table=table, values=values, paths=paths),
    ]


def random_product() -> list[Case]:
    """The product for 60 coefficients in random order, some of them for the same entry."""
    generator = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randint(0, n, (60,), generator=generator) for n in (4, 9, 5, 7)])
    return product(table, torch.randn(60, dtype=torch.float64, generator=generator), 4, (9, 5, 7), 20)


def track_product(l_max: int, layers: int, channels: int) -> list[Case]:
    track = tensor_track(l_max, True, layers)
    paths, table, values = product_table(track[0], track[0], track[1])
    first, second, dim = (int(row.max()) + 1 for row in table[1:])
    return product(table, values, len(paths), (first, second, dim), channels)


def layer_product(orders: int, channels: int) -> list[Case]:
    """A case with the sizes of the first layer of a model like "medium"."""
    sizes = {"l_max": orders - 1, "num_tensor_features": channels}
    layer = build_model(preset("medium", type_names=["H"], avg_num_neighbors=20.0, **sizes)).layers[0]
    components = (orders**2, orders**2, layer.dim_in)
    table, values = layer.table.clone(), layer.values.detach().double()
    return product(table, values, len(layer.path_weights), components, channels)


# ---- embedding of edges ----------------------------------------------------------------------------------------------

EMBEDDING_TOLERANCE = {"reference": {"fp64": 1e-12}, "triton": {"fp32": 3e-7, "fp64": 1e-12}}


def vectors_around_the_cutoffs(shape, generator, graph):
    """Vectors of which about half are beyond the cutoff of their pair, one of them far away."""
    vectors = scaled(1.8)(shape, generator, graph)
    if len(vectors) > 20:
        vectors[0] = torch.tensor([0.0, 0.0, 5000.0])
    return vectors


def cutoffs_of_pairs(shape, generator, graph):
    return 2 + 2 * torch.rand(shape, dtype=torch.float64, generator=generator)


def trained_roots(shape, generator, graph):
    return roots(shape, generator, graph) + scaled(0.2)(shape, generator, graph)


def roots(shape, generator, graph):
    return torch.arange(1, shape[0] + 1, dtype=torch.float64)


def embedding(width: int, bessels: int, l_max: int, types: int, p: float, trained: bool) -> list[Case]:
    """The embedding of edges and its gradient; a fill of its own keeps types of nodes below ``types``."""

    def types_of_nodes(shape, generator, graph):
        return torch.randint(0, types, shape, generator=generator)

    components = (l_max + 1) ** 2
    shared = {
        "vectors": Array(("edges", 3), vectors_around_the_cutoffs, "geometry"),
        "edge_index": Array((2, "edges"), numbers_below("nodes")),
        "node_types": Array(("nodes",), types_of_nodes),
        "cutoffs": Array((types, types), cutoffs_of_pairs, "geometry", constant=True),
        "roots": Array((bessels,), trained_roots if trained else roots, "geometry", constant=True),
        "centre": Array((types, width // 2), constant=True),
        "neighbour": Array((types, width // 2), constant=True),
        "weights": Array((bessels, width), constant=True),
        "p": p,
        "l_max": l_max,
    }
    trainable = ("vectors", "roots", "centre", "neighbour", "weights")
    dg, harmonics = Array(("edges", width)), Array(("edges", components))
    return [
        Case("edge_embedding", shared, EMBEDDING_TOLERANCE, trainable, True, formulas.edge_embedding),
        *(
            Case(
                "edge_embedding_backward",
                # in parts, as from several readers of the harmonics
                {"dg": dg, "dharmonics": [harmonics] * parts, **shared},
                EMBEDDING_TOLERANCE,
                ("dg", "dharmonics", *trainable),
                True,
                formulas.edge_embedding_backward,
                f"{parts} parts",
            )
            for parts in (1, 3)
        ),
    ]


EMBEDDINGS = {
    "32, 8 roots, l_max 3, 2 types": (32, 8, 3, 2, 6.0, False),
    "64, 8 trained roots, l_max 2": (64, 8, 2, 1, 6.0, True),
    "20, 5 trained roots, l_max 1, 3 types": (20, 5, 1, 3, 5.5, True),
    "6, 1 root, l_max 0, 2 types": (6, 1, 0, 2, 1.0, False),
    "130, 12 trained roots, l_max 3, 4 types": (130, 12, 3, 4, 2.0, True),
}
EMBEDDED = Graph((27, 0, 60, 1, 69), 18)
"""157 edges, which is no multiple of the edges of a program."""


def groups() -> list[Group]:
    found = [
        Group("sums, 2 orders of 2", sums(2, 2), Graph((2, 0, 3)), derivatives=True),
        Group("product, 2 orders of 2", track_product(1, 2, 2), Graph((1, 1)), derivatives=True),
        Group("random product", random_product(), Graph((0,) * 11)),
        Group("product, 4 orders of 64", track_product(3, 4, 64), Graph((0,) * 3)),
    ]
    # orders and channels: whole vectors of a processor, parts of one, both; whole tiles of a GPU and parts of one
    for orders, channels in ((4, 64), (3, 24), (1, 1), (2, 160), (5, 7)):
        cases = sums(orders, channels) + (layer_product(orders, channels) if channels == 64 else [])
        found.append(Group(f"sums, {orders} orders of {channels}", cases, GRAPH, multiprocessors=SHARED_OUT))
    for orders, channels in ((1, 3), (2, 16), (3, 21), (4, 8), (5, 35)):
        few = Graph((3, 0, 5, 1, 0, 19))
        found.append(Group(f"sums, {orders} orders of {channels}", sums(orders, channels), few, ("fp64", "fp32")))
    for orders, channels in ((3, 64), (2, 32)):
        cases = [*contraction_sums(orders, channels, (2,)), *layer_product(orders, channels)]
        found.append(Group(f"contractions, {orders} orders of {channels}", cases, Graph((3, 0, 7, 40))))
    # sums that do not fit into shared memory together; many edges of one centre; one edge at a time
    for orders, channels, counts in ((5, 130, (2, 0, 7)), (2, 16, (500, 0, 1)), (1, 600, (3,))):
        cases, name = contraction_sums(orders, channels, (2,)), f"contractions, {orders} orders of {channels}"
        found.append(Group(name, cases, Graph(counts), ("fp64", "fp32")))
    small = embedding(6, 3, 2, 2, 4.0, True)
    found.append(Group("embedding, 6", small, Graph((2, 0, 3)), ("fp64", "fp32"), derivatives=True))
    for name, sizes in EMBEDDINGS.items():
        found.append(Group(f"embedding, {name}", embedding(*sizes), EMBEDDED, ("fp64", "fp32")))
    return found
