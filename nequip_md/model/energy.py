"""From network outputs to energies: scales, shifts and neighbour normalisation, one number for each type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nequip_md.model.config import PotentialConfig


class ScaleShift(nn.Module):
    """E_i = scale(t_i) e_i + shift(t_i), float64, eV. Each is a parameter where the configuration says trainable.

    ``scales`` and ``shifts`` have one entry for all types, or one for each.
    """

    def __init__(self, config: PotentialConfig):
        super().__init__()
        for name, key, default in (("scales", "energy_scales", 1.0), ("shifts", "energy_shifts", 0.0)):
            value = getattr(config, key)
            entries = config.per_type(key, default) if isinstance(value, dict) else config.per_type(key, default)[:1]
            tensor = torch.tensor(entries, dtype=torch.float64)
            if getattr(config, f"{key}_trainable"):
                setattr(self, name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, energy: Tensor, types: Tensor) -> Tensor:
        """[N] network outputs and the types of the N owned atoms to energies, float64 [N]."""
        return self.shifted(self._of(self.scales, types) * energy.to(torch.float64), types)

    def shifted(self, energy: Tensor, types: Tensor) -> Tensor:
        """The same for [N] energies, float64, that have been scaled already."""
        return energy + self._of(self.shifts, types)

    @staticmethod
    def _of(values: Tensor, types: Tensor) -> Tensor:
        return values if values.shape[0] == 1 else values.index_select(0, types)


class NeighbourNorm(nn.Module):
    """n-bar(t)^(-1/2): makes sums over edges of order one. A single type-independent value stays a plain number."""

    def __init__(self, config: PotentialConfig):
        super().__init__()
        norms = torch.tensor(config.per_type("avg_num_neighbors", 1.0), dtype=torch.float64).rsqrt()
        self.uniform = norms[0].item() if not isinstance(config.avg_num_neighbors, dict) else None
        if self.uniform is None:
            self.register_buffer("norms", norms, persistent=False)

    def factors(self) -> Tensor | float:
        """One number, or one for each type, float64 [T]."""
        return self.norms if self.uniform is None else self.uniform

    def forward(self, x: Tensor, types: Tensor) -> Tensor:
        """Scale [N, ...] by the factor of each of the N types."""
        if self.uniform is not None:
            return x * self.uniform
        factor = self.norms.to(x.dtype).index_select(0, types)
        return x * factor.view(-1, *[1] * (x.ndim - 1))
