"""The equivariant nonlinearity of NequIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from nequip_md.model.nequip_irreps import LayerIrreps, split

# Factors that give silu(z) and tanh(z), z ~ N(0, 1), a second moment of one. They are e3nn's Monte-Carlo estimates (a
# million samples) rather than the exact integrals, because the weights of existing checkpoints were trained with them.
SILU_FACTOR = 1.6791767923989418
TANH_FACTOR = 1.5937334472592695


class Gate(nn.Module):
    """Even scalars through silu, odd ones through tanh, every l > 0 channel times the silu of its own scalar gate.

    Weiler et al., NeurIPS 2018; both functions have unit second moment for normally distributed arguments.
    """

    def __init__(self, irreps: LayerIrreps):
        super().__init__()
        self.irreps = irreps
        names = [block.name for block in irreps.outputs]
        self._scalars = [(names.index(block.name), block) for block in irreps.scalars]
        self._gated = [(names.index(block.name), block) for block in irreps.gated]

    def forward(self, features: Tensor) -> Tensor:
        """[nodes, width(irreps.outputs)] -> [nodes, width(irreps.features)]."""
        parts = split(features, self.irreps.outputs)
        results = []
        for source, block in self._scalars:
            values = parts[source].squeeze(1)
            if block.p > 0:
                activated = silu(values) * SILU_FACTOR
                results.append(activated[:, : block.mul])
                gates = activated[:, block.mul :]
            else:
                results.append(torch.tanh(values) * TANH_FACTOR)
        start = 0
        for source, block in self._gated:
            results.append((parts[source] * gates[:, None, start : start + block.mul]).flatten(1))
            start += block.mul
        return torch.cat(results, dim=1)
