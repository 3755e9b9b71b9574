"""Upstream ``nequip`` models: options and weights in the form of version 0.19.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from e3nn.o3 import Irreps as E3nnIrreps
from pydantic import ValidationError
from torch import Tensor

from nequip_md.checkpoint.native import describe
from nequip_md.checkpoint.upstream_options import (
    Options,
    State,
    common_options,
    cutoff_reciprocals,
    mlp_weights,
    scale_shift,
)
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import PRESETS, NequIPConfig, preset
from nequip_md.model.nequip_irreps import Block, LayerIrreps, embedding_width, plan_layers

# ours -> upstream's name and default, for options that are taken as they are
_PLAIN = {
    "type_embed_num_features": ("type_embed_num_features", None),
    "num_bessels": ("num_bessels", 8),
    "polynomial_cutoff_p": ("polynomial_cutoff_p", 6),
    "readout_mlp_depth": ("readout_mlp_hidden_layers_depth", 0),
    "readout_mlp_width": ("readout_mlp_hidden_layers_width", None),
}
_SHAPE = {
    "num_layers": 4,
    "l_max": 1,
    "parity": True,
    "num_features": 32,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 128,
}


def config_from_upstream(model_config: Mapping[str, Any]) -> NequIPConfig:
    """Translate the ``model`` section of an upstream configuration.

    Args:
        model_config: with ``_target_`` ``nequip.model.NequIPGNNModel``, ``PresetNequIPGNNModel`` or
            ``FullNequIPGNNModel``.

    Raises:
        NequIPMDError: an option that is not implemented, by name.
    """
    target = model_config["_target_"]
    options = Options(_with_preset(model_config, target), target)
    arguments = common_options(options)
    if arguments["avg_num_neighbors"] is None:
        options.refuse("avg_num_neighbors", None, "upstream needs a number, or one for each type")
    if target.endswith(".FullNequIPGNNModel"):
        arguments.update(_layers_by_irreps(options))
    else:
        arguments.update({key: options.take(key, default) for key, default in _SHAPE.items()})
    arguments.update({ours: options.take(theirs, default) for ours, (theirs, default) in _PLAIN.items()})
    arguments["bessel_trainable"] = bool(options.take("bessel_trainable", False))
    arguments["readout_mlp_nonlinearity"] = options.require(
        "readout_mlp_nonlinearity", ("silu", "mish", "gelu", None), "silu"
    )
    options.require("categorical_graph_field_embed", (None,), None)
    options.require("convnet_sc", (True,), True)
    options.require("learnable_shift", (False,), False)
    options.require("convnet_resnet", (False,), False)
    options.require("convnet_nonlinearity_type", ("gate",), "gate")
    for key in ("convnet_nonlinearity_scalars", "convnet_nonlinearity_gates"):
        options.require(key, ({"e": "silu", "o": "tanh"},), {"e": "silu", "o": "tanh"})
    options.finish()
    try:
        return NequIPConfig(**arguments)
    except ValidationError as error:
        raise NequIPMDError(f"upstream model {target}: {describe(error)}") from error


def _with_preset(section: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Options with those of a named preset filled in where they are not given."""
    section = dict(section)
    if not target.endswith(".PresetNequIPGNNModel"):
        return section
    name = str(section.pop("preset", None)).upper()
    known = [known for known in PRESETS if known.isupper()]
    if name not in known:
        raise NequIPMDError(f"upstream model {target}: preset {name!r} is not known; there are {', '.join(known)}")
    values = preset(name, type_names=["H"], cutoff=1.0)
    shape = {key: getattr(values, key) for key in (*_SHAPE, "type_embed_num_features")}
    return {**shape, **section}


def _layers_by_irreps(options: Options) -> dict[str, Any]:
    """The shape of a ``FullNequIPGNNModel``, which gives irreps for each layer, where it is one that ours can have."""
    harmonics = options.take("irreps_edge_sh")
    l_max = harmonics if isinstance(harmonics, int) else E3nnIrreps(harmonics).lmax
    if not isinstance(harmonics, int) and E3nnIrreps(harmonics) != E3nnIrreps.spherical_harmonics(l_max):
        options.refuse("irreps_edge_sh", harmonics, "implemented: the spherical harmonics 0 ... l_max")
    hidden = [E3nnIrreps(irreps) for irreps in options.take("feature_irreps_hidden")]
    first = hidden[0]
    # one layer alone has scalars only; its other multiplicities are never used
    channels = [next((mul for mul, ir in first if ir.l == l), first[0].mul) for l in range(l_max + 1)]
    parity = len(hidden) > 1 and len(first) > l_max + 1
    irreps = [(channels[l], (l, p)) for l in range(l_max + 1) for p in ((1, -1) if parity else ((-1) ** l,))]
    expected = [irreps] * (len(hidden) - 1) + [[(channels[0], (0, 1))]]
    if [[(mul, (ir.l, ir.p)) for mul, ir in layer] for layer in hidden] != expected:
        options.refuse(
            "feature_irreps_hidden",
            [str(irreps) for irreps in hidden],
            "implemented: the same irreps 0 ... l_max in every layer but the last, which has 0e with as many channels",
        )
    shape = {}
    for key in ("radial_mlp_depth", "radial_mlp_width"):
        values = list(options.take(key))
        if len(set(values)) != 1:
            options.refuse(key, values, "implemented: the same for every layer")
        shape[key] = values[0]
    return {"l_max": l_max, "parity": parity, "num_features": channels, "num_layers": len(hidden), **shape}


def state_from_upstream(config: NequIPConfig, upstream_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's weights under the names of :class:`nequip_md.model.nequip.NequIP`.

    Args:
        config: from :func:`config_from_upstream`.
        upstream_state: keys start at the network's modules: ``layer0_convnet.conv.linear_1.weight``, ...

    Raises:
        NequIPMDError: a tensor is missing, or belongs to nothing that is implemented.
    """
    state = State(upstream_state)
    state.constant("edge_norm._rmax_recip", cutoff_reciprocals(config.cutoff_matrix(), config.pair_cutoffs))
    result = {"type_embedding": state.take("type_embed.embed_module.weight")}
    if config.bessel_trainable:
        result["basis.roots"] = state.take("bessel_encode.bessel_weights").flatten()
    else:
        state.constant("bessel_encode.bessel_weights", torch.arange(1, config.num_bessels + 1))
    for index, irreps in enumerate(plan_layers(config)):
        result.update(_layer(config, state, index, irreps))
    readout = "per_atom_energy_readout.mlp_module"
    result.update(mlp_weights(state, "readout", readout, config.readout_mlp_depth, config.readout_mlp_nonlinearity))
    result.update(scale_shift(state))
    for suffix in (".output_mask", ".bias", ".mul.weight", ".tp.weight"):
        state.constants(suffix)
    for key in list(upstream_state):
        if "._w3j_" in key:
            state.constant(key)
    state.constant("pair_potential.atomic_numbers")
    state.constant("pair_potential._qqr2exesquare")
    state.finish()
    return result


def _layer(config: NequIPConfig, state: State, index: int, irreps: LayerIrreps) -> dict[str, Tensor]:
    ours, theirs = f"layers.{index}", f"layer{index}_convnet.conv"
    outputs = {block.name: block.mul for block in irreps.outputs}
    result = mlp_weights(state, f"{ours}.radial_mlp", f"{theirs}.edge_mlp", config.radial_mlp_depth, "silu")
    linear_in = [(block, (block.mul, block.mul)) for block in irreps.inputs]
    linear_out = [(block, (block.mul, outputs[block.name])) for block in irreps.messages]
    result.update(_blocks(state, f"{ours}.linear_in", f"{theirs}.linear_1.weight", linear_in))
    result.update(_blocks(state, f"{ours}.linear_out", f"{theirs}.linear_2.weight", linear_out))
    if index > 0:
        attributes = embedding_width(config)
        shapes = [
            (block, (block.mul, attributes, outputs[block.name])) for block in irreps.inputs if block.name in outputs
        ]
        result.update(_blocks(state, f"{ours}.self_connection", f"{theirs}.sc.weight", shapes))
    return result


def _blocks(state: State, ours: str, theirs: str, shapes: list[tuple[Block, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Weights of each irrep from a flat tensor that holds one after the other."""
    flat = state.take(theirs)
    sizes = [torch.Size(shape).numel() for _, shape in shapes]
    if flat.numel() != sum(sizes):
        raise NequIPMDError(
            f"upstream checkpoint: {theirs!r} has {flat.numel()} numbers where the configuration needs {sum(sizes)}; "
            "weights and configuration do not agree"
        )
    return {
        f"{ours}.weights.{block.name}": part.reshape(shape).clone()
        for (block, shape), part in zip(shapes, flat.split(sizes), strict=True)
    }
