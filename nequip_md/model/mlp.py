"""Multilayer perceptrons without bias.

y = x (alpha W), linear last layer; W ~ U(-sqrt 3, sqrt 3) and alpha = gain / sqrt(fan_in) with gain 1 in the first
layer and sqrt 2 after it where a nonlinearity is used. No bias, and f(0) = 0: what vanishes at the cutoff stays zero.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from nequip_md import ops

NONLINEARITIES = {"silu": functional.silu, "mish": functional.mish, "gelu": functional.gelu}


def uniform_weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """Uniform with mean 0 and variance 1."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype).uniform_(-sqrt(3), sqrt(3)))


class MLP(nn.Module):
    """A chain of linear layers with a nonlinearity between them.

    Args:
        widths: input, hidden and output widths.
        nonlinearity: ``silu``, ``mish``, ``gelu``, or None for a chain that is one matrix.
        dtype: of weights and activations.

    The last layer can be taken apart from the rest: :meth:`hidden` is its input, :meth:`last` its matrix. What is linear
    in the output can then be done before that layer (sums over edges), or be merged with it.
    """

    def __init__(self, widths: list[int], nonlinearity: str | None, dtype: torch.dtype):
        super().__init__()
        self.widths = widths
        self.nonlinearity = nonlinearity if len(widths) > 2 else None
        self.weights = nn.ParameterList(uniform_weight(m, n, dtype=dtype) for m, n in zip(widths, widths[1:]))
        nonlinear = nonlinearity is not None
        self.gains = [(sqrt(2) if nonlinear and k else 1.0) / sqrt(m) for k, m in enumerate(widths[:-1])]

    @property
    def hidden_width(self) -> int:
        """Width of :meth:`hidden`."""
        return self.widths[-2] if self.nonlinearity else self.widths[0]

    def hidden(self, x: Tensor) -> Tensor:
        """Input of the last matrix: [E, in] to [E, hidden_width]."""
        return self.hidden_from([x], self.first()) if self.nonlinearity else x

    def hidden_from(self, parts: list[Tensor], first: Tensor) -> Tensor:
        """:meth:`hidden` of an input in parts, with the first layer's matrix given (merged with a linear map before it)."""
        matrices = self.matrices(first)
        if self.nonlinearity == "silu":
            return ops.mlp_hidden(parts, matrices)
        x, activation = torch.cat(parts, dim=-1), NONLINEARITIES[self.nonlinearity]
        for matrix in matrices:
            x = activation(x @ matrix)
        return x

    def matrices(self, first: Tensor) -> list[Tensor]:
        """Matrices of the hidden layers, gains included, with the first one given."""
        return [first, *(weight * gain for weight, gain in list(zip(self.weights, self.gains))[1:-1])]

    def first(self) -> Tensor:
        """Matrix of the first layer, gain included."""
        return self.weights[0] * self.gains[0]

    def last(self) -> Tensor:
        """Matrix that maps :meth:`hidden` to the output: [hidden_width, out]."""
        if self.nonlinearity:
            return self.weights[-1] * self.gains[-1]
        matrix = self.weights[0] * self.gains[0]
        for weight, gain in list(zip(self.weights, self.gains))[1:]:
            matrix = matrix @ (weight * gain)
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.last()
