"""NequIP's features in the order that nequip 0.16 introduced.

A layer's features are its scalars, then its gated irreps. The gated ones went by parity, then l (1e 2e 1o 2o) before
0.16 and go by l, then parity (1e 1o 2e 2o) since. The order decides how weights are laid out, not what can be computed,
so older weights are permuted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.model.config import NequIPConfig
from nequip_md.model.nequip_irreps import Irreps, LayerIrreps, Path, embedding_width, plan_layers


def reorder_features(config: NequIPConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's tensors of a version before 0.16 as 0.16 would store them.

    Args:
        config: with parity; without, older versions computed something else.
        state: keys start at the network's own modules.
    """
    result = dict(state)
    for index, layer in enumerate(plan_layers(config)):
        prefix = f"layer{index}_convnet.conv"
        order = _older_first(layer.inputs)
        radial = f"{prefix}.edge_mlp.mlp.{2 * config.radial_mlp_depth}.weight"
        paths = sorted(range(len(layer.paths)), key=lambda k: (order.index(layer.paths[k].source), k))
        result[radial] = _columns(state[radial], [path.mul for path in layer.paths], paths)
        name = f"{prefix}.linear_1.weight"
        result[name] = torch.cat(_blocks(state[name], [block.mul**2 for block in layer.inputs], order))
        name = f"{prefix}.linear_2.weight"
        result[name] = _second_linear(layer, state[name], paths)
        name = f"{prefix}.sc.weight"
        if name in state:
            result[name] = _self_connection(layer, state[name], order, embedding_width(config))
    return result


def _older_first(irreps: Irreps) -> list[int]:
    """Positions of features in today's order, listed in the older order."""
    return sorted(range(len(irreps)), key=lambda k: (irreps[k].l > 0, -irreps[k].p, irreps[k].l))


def _blocks(values: Tensor, sizes: list[int], stored: list[int]) -> list[Tensor]:
    """Parts of a flat tensor whose k-th part belongs to item ``stored[k]``, in the order of the items."""
    parts = dict(zip(stored, values.split([sizes[k] for k in stored])))
    return [parts[k] for k in range(len(sizes))]


def _columns(matrix: Tensor, sizes: list[int], stored: list[int]) -> Tensor:
    return torch.cat(_blocks(matrix.T, sizes, stored)).T.contiguous()


def _gate_columns(layer: LayerIrreps, matrix: Tensor) -> Tensor:
    """Columns of a map to the 0e block: the scalars, then one gate for each channel of the gated irreps."""
    gates = sum(block.mul for block in layer.gated)
    scalars = matrix.shape[1] - gates
    order = _older_first(layer.gated)
    return torch.cat([matrix[:, :scalars], _columns(matrix[:, scalars:], [b.mul for b in layer.gated], order)], dim=1)


def _second_linear(layer: LayerIrreps, flat: Tensor, stored: list[int]) -> Tensor:
    """Messages to layer outputs: rows go by path, for each irrep apart."""
    widths = {(block.l, block.p): block.mul for block in layer.outputs}
    result = []
    sizes = [block.mul * widths[block.l, block.p] for block in layer.messages]
    for block, part in zip(layer.messages, flat.split(sizes)):
        matrix = part.view(block.mul, widths[block.l, block.p])
        mine = [k for k, path in enumerate(layer.paths) if _leads_to(path, block.l, block.p)]
        local = [mine.index(k) for k in stored if k in mine]
        matrix = torch.cat(_blocks(matrix, [layer.paths[k].mul for k in mine], local))
        if block.name == "0e" and layer.gated:
            matrix = _gate_columns(layer, matrix)
        result.append(matrix.flatten())
    return torch.cat(result)


def _self_connection(layer: LayerIrreps, flat: Tensor, order: list[int], attributes: int) -> Tensor:
    widths = {(block.l, block.p): block.mul for block in layer.outputs}
    sizes = [block.mul * attributes * widths.get((block.l, block.p), 0) for block in layer.inputs]
    parts = _blocks(flat, sizes, order)
    for k, block in enumerate(layer.inputs):
        if block.name == "0e" and layer.gated:
            matrix = parts[k].view(block.mul * attributes, -1)
            parts[k] = _gate_columns(layer, matrix).flatten()
    return torch.cat(parts)


def _leads_to(path: Path, l: int, p: int) -> bool:
    return (path.l_out, path.p_out) == (l, p)
