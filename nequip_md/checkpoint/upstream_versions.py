"""What older upstream versions meant: configurations and weights in the form of nequip 0.19.1 / nequip-allegro 0.8.3.

Options that a configuration leaves out take the defaults of the version that wrote it, and some were renamed. Function
and parameters of Allegro are otherwise the same from 0.4 on, those of NequIP from 0.7 on, but for the order of NequIP's
features before 0.16.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nequip_md.checkpoint.nequip_order import reorder_features
from nequip_md.checkpoint.upstream_options import Options
from nequip_md.errors import NequIPMDError
from nequip_md.model.config import PotentialConfig

Version = tuple[int, ...]
_MODELS = {
    "allegro": ("AllegroModel", "FullAllegroModel"),
    "nequip": ("NequIPGNNModel", "PresetNequIPGNNModel", "FullNequIPGNNModel"),
}


def parse_version(versions: dict[str, str], package: str) -> Version:
    """(0, 16, 2) for "0.16.2"; of an unknown version the newest is assumed.

    Raises:
        NequIPMDError: a version before nequip 0.7.
    """
    text = versions.get(package, "")
    numbers = []
    for part in text.split("+")[0].split(".")[:3]:
        if not part.isdigit():
            break
        numbers.append(int(part))
    version = tuple(numbers) or (999,)
    if package == "nequip" and version < (0, 7):
        raise NequIPMDError(f"upstream nequip {text} is too old: checkpoints of nequip 0.7 and newer can be read")
    return version


def modern_config(config: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """A model section with the meaning that it had for the version that wrote it, in today's words.

    Raises:
        NequIPMDError: a model, or an option of an older version, that is not implemented, by name.
    """
    target = config.get("_target_", "")
    package, name = target.partition(".")[0], target.rpartition(".")[2].replace("EnergyModel", "Model")
    if name not in _MODELS.get(package, ()):
        raise NequIPMDError(
            f"upstream model {target!r} is not implemented by nequip-md; implemented: "
            + ", ".join(f"{package}.model.{name}" for package, names in _MODELS.items() for name in names)
            + ". Compile it with upstream's own nequip-compile."
        )
    nequip = parse_version(versions, "nequip")
    config = {**config, "_target_": f"{package}.model.{name}"}
    if nequip < (0, 17) and config.get("pair_potential"):
        _require_default_envelope(config)
    if package == "nequip":
        return _modern_nequip(config, nequip)
    return _modern_allegro(config, parse_version(versions, "allegro"))


def _require_default_envelope(config: dict[str, Any]) -> None:
    """Before nequip 0.17 the pair term shared the network's envelope; ours, as today's, has its own with p = 6."""
    section = config.get("radial_chemical_embed") or config.get("scalar_embed") or config
    Options(section, config["_target_"]).require("polynomial_cutoff_p", (6, 6.0), 6)


def _modern_nequip(config: dict[str, Any], version: Version) -> dict[str, Any]:
    if config["_target_"] != "nequip.model.NequIPGNNModel":
        return config
    if version < (0, 17):
        config = {"radial_mlp_depth": 2, "radial_mlp_width": 64, **config}
    if version < (0, 16):
        # without parity, upstream coupled irreps by SO(3) rules then
        Options(config, f"{config['_target_']} of nequip < 0.16").require("parity", (True,), True)
    return config


def _modern_allegro(config: dict[str, Any], version: Version) -> dict[str, Any]:
    if version < (0, 6, 1):
        Options(config, config["_target_"]).require("scatter_features", (False,), False)
        config.pop("scatter_features", None)
    return _from_allegro_0_4(config) if version < (0, 5) else config


def _from_allegro_0_4(config: dict[str, Any]) -> dict[str, Any]:
    options = Options(config, f"{config['_target_']} of nequip-allegro 0.4")
    parity = options.require("parity_setting", ("o3_full", "o3_restricted"), "o3_full") == "o3_full"
    embedding = dict(options.take("scalar_embed"))
    if not embedding["_target_"].endswith("TwoBodyBesselScalarEmbed"):
        options.refuse("scalar_embed", embedding["_target_"], "implemented: 'allegro.nn.TwoBodyBesselScalarEmbed'")
    width = options.take("num_scalar_features", 64)
    options.require("scalar_embed_output_dim", (None, width), None)
    renamed = ("parity_setting", "scalar_embed", "scalar_embed_output_dim")
    modern = {key: value for key, value in config.items() if key not in renamed}
    if not modern["_target_"].endswith("FullAllegroModel"):
        modern["parity"] = parity
    modern["radial_chemical_embed_dim"] = embedding.pop("two_body_embedding_dim", 32)
    for key, default in (("hidden_layers_depth", 2), ("hidden_layers_width", 64), ("nonlinearity", "silu")):
        modern[f"scalar_embed_mlp_{key}"] = embedding.pop(f"two_body_mlp_{key}", default)
    modern["radial_chemical_embed"] = embedding
    for key, default in (
        ("num_tensor_features", 64),
        ("allegro_mlp_hidden_layers_depth", 2),
        ("readout_mlp_hidden_layers_depth", 2),
        ("readout_mlp_nonlinearity", None),
    ):
        modern.setdefault(key, default)
    return modern


def modern_state(
    config: PotentialConfig, target: str, state: dict[str, Tensor], versions: dict[str, str]
) -> dict[str, Tensor]:
    """Weights in today's order, under today's names.

    Args:
        config: our configuration of the model.
        target: upstream's builder; a ``Full...`` one lists its irreps, and so their order, itself.
        state: keys start at the network's own modules.
        versions: of upstream's packages that built the model.
    """
    if config.kind == "allegro":
        if parse_version(versions, "allegro") >= (0, 5):
            return state
        return {_renamed(key): value for key, value in state.items()}
    version = parse_version(versions, "nequip")
    if version < (0, 8):
        state = {key.replace(".conv.tp.", ".conv.tp_scatter.tp."): value for key, value in state.items()}
    ordered_by_parity = version < (0, 16) and "Full" not in target
    return reorder_features(config, state) if ordered_by_parity else state


def _renamed(key: str) -> str:
    """Today's name of a tensor of nequip-allegro 0.4."""
    for old, new in (("scalar_embed.twobody_mlp.", "scalar_embed_mlp."), ("scalar_embed.", "radial_chemical_embed.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
