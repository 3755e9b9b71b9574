"""Layers of NequIP and random inputs of their convolutions."""

from __future__ import annotations

import torch

from nequip_md.model import NequIPConfig
from nequip_md.model.nequip import convolution_paths
from nequip_md.model.nequip_irreps import plan_layers, width

COUNTS = [3, 0, 5, 1, 0, 7]  # edges of each centre, empty ones among them
NODES = 9  # the last three are neighbours only
CASES = {
    "scalars": (0, [3]),
    "vectors": (1, [3, 2]),
    "no_parity": (2, [2, 3, 1], 1, False),
    "first_layer": (2, [2, 3, 1], 0),
    "last_layer": (2, [2, 3, 1], 2),
    "l4": (4, [1, 2, 1, 1, 1], 1, False),
}
"""Arguments of :func:`layer` by name."""


def layer(l_max: int, num_features: list[int], index: int = 1, parity: bool = True):
    """Irreps of one layer of a three-layer model, its paths as a list of integers, and its coefficients."""
    config = NequIPConfig(
        type_names=["H"], cutoff=1.0, l_max=l_max, num_features=num_features, num_layers=3, parity=parity
    )
    irreps = plan_layers(config)[index]
    paths, cg = convolution_paths(irreps)
    return irreps, [number for path in paths for number in path], cg


def inputs(irreps, counts=COUNTS, nodes=NODES, dtype=torch.float64, grad=False):
    """Random inputs x, y, w, g, centre, neighbour and row_ptr."""
    generator = torch.Generator().manual_seed(len(counts))
    counts = torch.tensor(counts)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    centre = torch.repeat_interleave(torch.arange(len(counts)), counts)
    neighbour = torch.randint(0, nodes, centre.shape, generator=generator)
    l_max = max(path.l_edge for path in irreps.paths)
    sizes = [
        (nodes, width(irreps.inputs)),
        (len(centre), (l_max + 1) ** 2),
        (len(centre), sum(path.mul for path in irreps.paths)),
        (len(counts), width(irreps.messages)),
    ]
    tensors = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_(grad) for size in sizes]
    return *tensors, centre, neighbour, row_ptr
