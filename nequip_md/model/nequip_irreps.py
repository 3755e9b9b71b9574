"""Which irreducible representations flow through NequIP, layer by layer.

An irrep of O(3) is (l, p) with p = +1 (even) or -1 (odd) under inversion; ``Block`` adds its number of channels. Features
are flat tensors [nodes, sum of (2 l + 1) * mul]: one block after the other, each [2 l + 1, mul] with channels contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nequip_md.model.config import NequIPConfig


class Block(NamedTuple):
    """``mul`` channels of the irrep (l, p)."""

    l: int
    p: int
    mul: int

    @property
    def name(self) -> str:
        """The irrep alone, as in e3nn: ``1o``."""
        return f"{self.l}{'e' if self.p > 0 else 'o'}"

    @property
    def width(self) -> int:
        """Number of components times channels."""
        return (2 * self.l + 1) * self.mul


Irreps = tuple[Block, ...]


def width(irreps: Irreps) -> int:
    """Length of a flat feature vector."""
    return sum(block.width for block in irreps)


def split(features: Tensor, irreps: Irreps) -> list[Tensor]:
    """Views [nodes, 2 l + 1, mul] of the blocks of flat features [nodes, width]."""
    parts = features.split([block.width for block in irreps], dim=1)
    return [part.unflatten(1, (2 * block.l + 1, block.mul)) for part, block in zip(parts, irreps, strict=True)]


class Path(NamedTuple):
    """One coupling (l, p) x spherical harmonic l_edge -> (l_out, p_out) of the ``mul`` channels of input block ``source``."""

    source: int
    l_in: int
    l_edge: int
    l_out: int
    p_out: int
    mul: int


@dataclass(frozen=True)
class LayerIrreps:
    """Representations of one interaction layer.

    Attributes:
        inputs: of the node features that enter.
        paths: couplings with the spherical harmonics, in the order of the radial weights: by input block, l_edge, l_out.
        messages: of the summed messages, ordered by (l, p); the channels of a block are those of its paths, in order.
        outputs: of the layer before its gate, ordered by (l, p); the 0e block holds the scalars, then the gates.
        scalars: of the gate's output that are l = 0.
        gated: of the gate's output that are l > 0, in the order of their gates.
    """

    inputs: Irreps
    paths: tuple[Path, ...]
    messages: Irreps
    outputs: Irreps
    scalars: Irreps
    gated: Irreps

    @property
    def features(self) -> Irreps:
        """Node features that leave."""
        return self.scalars + self.gated


def feature_multiplicities(config: NequIPConfig) -> list[int]:
    """Number of channels for each l."""
    value = config.num_features
    return list(value) if isinstance(value, list) else [value] * (config.l_max + 1)


def embedding_width(config: NequIPConfig) -> int:
    """Number of features of the type embedding."""
    return config.type_embed_num_features or feature_multiplicities(config)[0]


def plan_layers(config: NequIPConfig) -> list[LayerIrreps]:
    """The representations of every layer: all reachable ones up to l_max, in the last layer 0e alone.

    Without parity only those of the spherical harmonics, p = (-1)^l, are kept.
    """
    muls = feature_multiplicities(config)
    hidden = tuple(
        Block(l, p, muls[l]) for l in range(config.l_max + 1) for p in ((1, -1) if config.parity else ((-1) ** l,))
    )
    inputs: Irreps = (Block(0, 1, embedding_width(config)),)
    layers = []
    for index in range(config.num_layers):
        wanted = hidden if index + 1 < config.num_layers else (Block(0, 1, muls[0]),)
        layers.append(_plan_layer(inputs, wanted, config.l_max))
        inputs = layers[-1].features
    return layers


def _plan_layer(inputs: Irreps, wanted: Irreps, l_max: int) -> LayerIrreps:
    couplings = [
        Path(source, block.l, l_edge, l_out, block.p * (-1) ** l_edge, block.mul)
        for source, block in enumerate(inputs)
        for l_edge in range(l_max + 1)
        for l_out in range(abs(block.l - l_edge), block.l + l_edge + 1)
    ]
    reachable = {(path.l_out, path.p_out) for path in couplings}
    kept = [block for block in wanted if (block.l, block.p) in reachable]
    scalars = tuple(block for block in kept if block.l == 0)
    gated = tuple(block for block in kept if block.l > 0)
    gates = sum(block.mul for block in gated)
    outputs = sorted(Block(b.l, b.p, b.mul + gates) if b.name == "0e" else b for b in kept)

    names = {(block.l, block.p) for block in kept}
    paths = tuple(path for path in couplings if (path.l_out, path.p_out) in names)
    channels = {key: sum(p.mul for p in paths if (p.l_out, p.p_out) == key) for key in sorted(names)}
    messages = tuple(Block(l, p, mul) for (l, p), mul in channels.items())
    return LayerIrreps(inputs, paths, messages, tuple(outputs), scalars, gated)
