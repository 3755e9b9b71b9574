"""Upstream ``nequip-allegro`` models: options and weights in the form of version 0.8.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from e3nn.o3 import Irreps
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
from nequip_md.model.config import AllegroConfig

# ours -> upstream's name and default, for options that are taken as they are
_PLAIN = {
    "num_layers": ("num_layers", 2),
    "num_scalar_features": ("num_scalar_features", 64),
    "num_tensor_features": ("num_tensor_features", 16),
    "radial_embedding_dim": ("radial_chemical_embed_dim", None),
    "two_body_mlp_depth": ("scalar_embed_mlp_hidden_layers_depth", 1),
    "two_body_mlp_width": ("scalar_embed_mlp_hidden_layers_width", 64),
    "allegro_mlp_depth": ("allegro_mlp_hidden_layers_depth", 1),
    "allegro_mlp_width": ("allegro_mlp_hidden_layers_width", 64),
    "readout_mlp_depth": ("readout_mlp_hidden_layers_depth", 1),
    "readout_mlp_width": ("readout_mlp_hidden_layers_width", 32),
    "path_channel_coupling": ("tp_path_channel_coupling", True),
}
_NONLINEARITIES = {
    "two_body_mlp_nonlinearity": "scalar_embed_mlp_nonlinearity",
    "allegro_mlp_nonlinearity": "allegro_mlp_nonlinearity",
    "readout_mlp_nonlinearity": "readout_mlp_nonlinearity",
}


def config_from_upstream(model_config: Mapping[str, Any]) -> AllegroConfig:
    """Translate the ``model`` section of an upstream configuration.

    Args:
        model_config: with ``_target_`` ``allegro.model.AllegroModel`` or ``FullAllegroModel``.

    Raises:
        NequIPMDError: an option that is not implemented, by name.
    """
    options = Options(model_config, model_config["_target_"])
    arguments = common_options(options)
    arguments.update(_symmetry(options))
    arguments.update({ours: options.take(theirs, default) for ours, (theirs, default) in _PLAIN.items()})
    for ours, theirs in _NONLINEARITIES.items():
        arguments[ours] = options.require(theirs, ("silu", "mish", "gelu", None), "silu")
    arguments["radial_embedding"], arguments["polynomial_cutoff_p"] = _radial_embedding(options)
    options.require("weight_individual_irreps", (True,), True)
    options.require("forward_normalize", (True,), True)
    options.finish()
    try:
        return AllegroConfig(**arguments)
    except ValidationError as error:
        raise NequIPMDError(f"upstream model {options.name}: {describe(error)}") from error


def _symmetry(options: Options) -> dict[str, Any]:
    """l_max and parity, given as such or, for ``FullAllegroModel``, as lists of irreps."""
    harmonics = options.take("irreps_edge_sh", None)
    if harmonics is None:
        return {"l_max": options.take("l_max"), "parity": bool(options.take("parity", True))}
    allowed = options.take("tensor_track_allowed_irreps")
    l_max = harmonics if isinstance(harmonics, int) else Irreps(harmonics).lmax
    natural = {(l, (-1) ** l) for l in range(l_max + 1)}
    if not isinstance(harmonics, int) and Irreps(harmonics) != Irreps.spherical_harmonics(l_max):
        options.refuse("irreps_edge_sh", harmonics, "implemented: the spherical harmonics 0 ... l_max")
    found = {(ir.l, ir.p) for _, ir in Irreps(allowed)}
    if found not in (natural, {(l, p) for l in range(l_max + 1) for p in (1, -1)}):
        options.refuse("tensor_track_allowed_irreps", allowed, "implemented: all to l_max, or those of the harmonics")
    return {"l_max": l_max, "parity": found != natural}


def _radial_embedding(options: Options) -> tuple[dict[str, Any], float]:
    section = options.take("radial_chemical_embed")
    target = section["_target_"]
    embedding = Options(section, target)
    p = 6.0
    match target.rpartition(".")[2]:
        case "TwoBodyBesselScalarEmbed":
            result = {
                "kind": "bessel",
                "num_bessels": embedding.take("num_bessels", 8),
                "bessel_trainable": bool(embedding.take("bessel_trainable", False)),
            }
            p = float(embedding.take("polynomial_cutoff_p", 6))
        case "TwoBodySplineScalarEmbed":
            result = {
                "kind": "spline",
                "num_splines": embedding.take("num_splines", 16),
                "spline_span": embedding.take("spline_span", 12),
            }
        case _:
            options.refuse("radial_chemical_embed", target, "implemented: the Bessel and the spline embedding")
    embedding.finish()
    return result, p


def state_from_upstream(config: AllegroConfig, upstream_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's weights under the names of :class:`nequip_md.model.allegro.Allegro`.

    Args:
        config: from :func:`config_from_upstream`.
        upstream_state: keys start at the network's modules: ``allegro.tps.0.weights``, ...

    Raises:
        NequIPMDError: a tensor is missing, or belongs to nothing that is implemented.
    """
    state = State(upstream_state)
    state.constant("edge_norm._rmax_recip", cutoff_reciprocals(config.cutoff_matrix(), config.pair_cutoffs))
    result = _embedding(config, state)
    for ours, theirs, depth, nonlinearity in (
        ("two_body_mlp", "scalar_embed_mlp.mlp_module", config.two_body_mlp_depth, config.two_body_mlp_nonlinearity),
        ("tensor_weights", "tensor_embed.env_embed_linear", 0, None),
        ("first_projection", "allegro.first_layer_env_embed_projection", 0, None),
        ("readout", "edge_readout.mlp_module", config.readout_mlp_depth, config.readout_mlp_nonlinearity),
    ):
        result.update(mlp_weights(state, ours, theirs, depth, nonlinearity))
    depth, nonlinearity = config.allegro_mlp_depth, config.allegro_mlp_nonlinearity
    for k in range(config.num_layers):
        result.update(mlp_weights(state, f"layers.{k}.mlp", f"allegro.latents.{k}", depth, nonlinearity))
        result[f"layers.{k}.path_weights"] = _path_weights(config, state.take(f"allegro.tps.{k}.weights"))
    result.update(scale_shift(state))
    state.constants(".w3j")
    state.constants("_rtoi")
    state.constant("pair_potential.atomic_numbers")
    state.constant("pair_potential._qqr2exesquare")
    state.finish()
    return result


def _embedding(config: AllegroConfig, state: State) -> dict[str, Tensor]:
    if config.radial_embedding.kind == "spline":
        embedding = config.radial_embedding
        weight = state.take("radial_chemical_embed.spline.class_embed.weight")
        state.constants("radial_chemical_embed.spline.lower")
        state.constants("radial_chemical_embed.spline.upper")
        return {"embedding.weight": weight.view(weight.shape[0], -1, embedding.num_splines)}
    types = "radial_chemical_embed.type_embed"
    result = {
        "embedding.centre": state.take(f"{types}.center_embed.weight"),
        "embedding.neighbour": state.take(f"{types}.neighbor_embed.weight"),
        **mlp_weights(state, "embedding.linear", f"{types}.basis_linear", 0, None),
    }
    roots = "radial_chemical_embed.bessel_encode.bessel_weights"
    if config.radial_embedding.bessel_trainable:
        result["embedding.basis.roots"] = state.take(roots).flatten()
    else:
        state.constant(roots, torch.arange(1, config.radial_embedding.num_bessels + 1))
    return result


def _path_weights(config: AllegroConfig, weights: Tensor) -> Tensor:
    """Upstream's [U, P] or, without path-channel coupling, [P] (no axis P if it is 1) as ours, [P, U or 1]."""
    channels = config.num_tensor_features if config.path_channel_coupling else 1
    return weights.reshape(channels, -1).T.contiguous()
