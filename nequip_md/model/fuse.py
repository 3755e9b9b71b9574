"""Switch a model to the operators that a device may run as one kernel."""

from __future__ import annotations

from nequip_md.model.mlp import MLP
from nequip_md.model.potential import Potential

MAX_WIDTH = 512
"""Widest layer that the fused perceptrons take."""


def fuse(model: Potential) -> list[str]:
    """Let a float32 model use fused operators for inference, in place.

    A perceptron takes them (:mod:`nequip_md.ops.mlp`) with silu and hidden widths up to 512; an Allegro model with Bessel
    functions makes its edges' embedding and harmonics in one (:mod:`nequip_md.ops.edge_embedding`).

    Returns:
        What stays as it is, and why: one sentence for each.
    """
    if model.config.dtype != "float32":
        return [f"the model is {model.config.dtype}, not float32"]
    model.fused = True
    left = []
    for name, mlp in model.named_modules():
        if not isinstance(mlp, MLP) or mlp.nonlinearity is None:
            continue
        if mlp.nonlinearity != "silu":
            left.append(f"{name}: the nonlinearity is {mlp.nonlinearity}, not silu")
        elif max(mlp.widths[1:-1]) > MAX_WIDTH:
            left.append(f"{name}: a width of {max(mlp.widths[1:-1])} exceeds {MAX_WIDTH}")
        else:
            mlp.fused = True
    return left
