"""What a potential is made of: the readable configuration that a checkpoint carries.

Each model kind has one pydantic class. A value that is out of range or a key that is unknown is refused by name.
Defaults are those of upstream ``nequip`` 0.19 / ``nequip-allegro`` 0.8, so that configurations translate one to one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ase.data import atomic_numbers
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

Nonlinearity = Literal["silu", "mish", "gelu"] | None

# far beyond any use: with these, what a configuration costs is decided by its widths alone
Layers = Annotated[int, Field(gt=0, le=50)]
Depth = Annotated[int, Field(ge=0, le=50)]
BasisSize = Annotated[int, Field(gt=0, le=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ZBLConfig(_Strict):
    """Ziegler-Biersack-Littmark screened nuclear repulsion, with LAMMPS' constants, times the cutoff envelope.

    ``chemical_species`` gives the element of each model type, in the order of ``type_names``.
    """

    kind: Literal["zbl"] = "zbl"
    chemical_species: list[str]

    @field_validator("chemical_species")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for symbol in value:
            if atomic_numbers.get(symbol, 0) == 0:
                raise ValueError(f"{symbol!r} is not a chemical element")
        return value


class PotentialConfig(_Strict):
    """Options common to every model kind."""

    type_names: list[str] = Field(min_length=1, max_length=1000)
    cutoff: PositiveFloat
    """Global cutoff radius, angstrom; no pair cutoff may exceed it."""
    pair_cutoffs: dict[str, float | dict[str, float]] | None = None
    """Cutoff by centre type, or by centre then neighbour type, angstrom; pairs not named use ``cutoff``."""
    polynomial_cutoff_p: PositiveFloat = 6.0
    avg_num_neighbors: float | dict[str, float] | None = None
    """n-bar: mean number of neighbours, one number or one for each type; None means 1."""
    energy_scales: float | dict[str, float] | None = None
    energy_shifts: float | dict[str, float] | None = None
    """eV, one number or one for each type; None means scale 1, shift 0."""
    energy_scales_trainable: bool = False
    energy_shifts_trainable: bool = False
    pair_potential: ZBLConfig | None = None
    dtype: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _types_agree(self):
        names = self.type_names
        if len(set(names)) != len(names):
            raise ValueError(f"type_names {names} has a name twice")
        for key in ("avg_num_neighbors", "energy_scales", "energy_shifts"):
            value = getattr(self, key)
            if isinstance(value, dict) and set(value) != set(names):
                raise ValueError(f"{key} must name each of {names} once, it names {sorted(value)}")
        for centre, row in (self.pair_cutoffs or {}).items():
            entries = row if isinstance(row, dict) else {centre: row}
            for name, radius in [(centre, self.cutoff), *entries.items()]:
                if name not in names:
                    raise ValueError(f"pair_cutoffs names {name!r}, which is not in type_names {names}")
                if not 0 < radius <= self.cutoff:
                    raise ValueError(
                        f"pair_cutoffs[{centre!r}] holds {radius}; it must lie in (0, cutoff = {self.cutoff}]"
                    )
        if self.pair_potential and len(self.pair_potential.chemical_species) != len(names):
            raise ValueError("pair_potential.chemical_species must have one element for each of type_names")
        return self

    def cutoff_matrix(self) -> list[list[float]]:
        """Cutoffs in angstrom, ``[centre type][neighbour type]``."""
        rows = self.pair_cutoffs or {}
        matrix = []
        for centre in self.type_names:
            row = rows.get(centre, {})
            matrix.append([row.get(n, self.cutoff) if isinstance(row, dict) else row for n in self.type_names])
        return matrix

    def per_type(self, key: str, default: float) -> list[float]:
        """The option ``key`` (a number, a mapping or None) as one number for each type."""
        value = getattr(self, key)
        if value is None:
            value = default
        return [float(value[n] if isinstance(value, dict) else value) for n in self.type_names]


class BesselEmbedding(_Strict):
    """Product of type embeddings and a linear map of Bessel functions times the envelope."""

    kind: Literal["bessel"] = "bessel"
    num_bessels: BasisSize = 8
    bessel_trainable: bool = False


class SplineEmbedding(_Strict):
    """One spline for each ordered pair of types and channel (raised-cosine basis, finite support)."""

    kind: Literal["spline"] = "spline"
    num_splines: BasisSize = 16
    spline_span: BasisSize = 12


class AllegroConfig(PotentialConfig):
    """Allegro (Musaelian et al., Nat. Commun. 14, 579 (2023)), as in ``nequip-allegro`` 0.8."""

    kind: Literal["allegro"] = "allegro"
    l_max: int = Field(2, ge=0, le=3)
    parity: bool = True
    num_layers: Layers = 2
    num_scalar_features: PositiveInt = 64
    num_tensor_features: PositiveInt = 16
    radial_embedding: Annotated[BesselEmbedding | SplineEmbedding, Field(discriminator="kind")] = BesselEmbedding()
    radial_embedding_dim: PositiveInt | None = None
    """Width of the two-body embedding; None means ``num_scalar_features``. Even for the Bessel embedding."""
    two_body_mlp_depth: Depth = 1
    two_body_mlp_width: PositiveInt = 64
    two_body_mlp_nonlinearity: Nonlinearity = "silu"
    allegro_mlp_depth: Depth = 1
    allegro_mlp_width: PositiveInt = 64
    allegro_mlp_nonlinearity: Nonlinearity = "silu"
    readout_mlp_depth: Depth = 1
    readout_mlp_width: PositiveInt = 32
    readout_mlp_nonlinearity: Nonlinearity = "silu"
    path_channel_coupling: bool = True

    @model_validator(mode="after")
    def _even_embedding(self):
        dim = self.radial_embedding_dim or self.num_scalar_features
        if self.radial_embedding.kind == "bessel" and dim % 2:
            raise ValueError(f"the Bessel embedding needs an even width; radial_embedding_dim is {dim}")
        return self


class NequIPConfig(PotentialConfig):
    """NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022)), as in ``nequip`` 0.19."""

    kind: Literal["nequip"] = "nequip"
    l_max: int = Field(1, ge=0, le=4)
    parity: bool = True
    num_layers: Layers = 4
    num_features: PositiveInt | list[PositiveInt] = 32
    """Multiplicity of each l: one number, or l_max + 1 of them."""
    type_embed_num_features: PositiveInt | None = None
    radial_mlp_depth: Layers = 1
    radial_mlp_width: PositiveInt = 128
    num_bessels: BasisSize = 8
    bessel_trainable: bool = False
    readout_mlp_depth: Depth = 0
    readout_mlp_width: PositiveInt | None = None
    readout_mlp_nonlinearity: Nonlinearity = "silu"

    @model_validator(mode="after")
    def _feature_list(self):
        if isinstance(self.num_features, list) and len(self.num_features) != self.l_max + 1:
            raise ValueError(
                f"num_features must have l_max + 1 = {self.l_max + 1} entries, it has {len(self.num_features)}"
            )
        return self


AnyConfig = Annotated[AllegroConfig | NequIPConfig, Field(discriminator="kind")]

_SPICE = {
    "cutoff": 6.0,
    "parity": True,
    "radial_embedding_dim": 32,
    "two_body_mlp_depth": 2,
    "two_body_mlp_width": 64,
    "readout_mlp_depth": 1,
    "readout_mlp_width": 128,
    "readout_mlp_nonlinearity": None,
}
# nano and tiny are this package's own; the larger ones are those of the seed paper's SPICE-2 models
_ALLEGRO_PRESETS = {
    "nano": {
        "l_max": 1,
        "num_layers": 1,
        "num_scalar_features": 32,
        "num_tensor_features": 16,
        "two_body_mlp_width": 32,
        "allegro_mlp_depth": 2,
        "allegro_mlp_width": 32,
        "readout_mlp_depth": 0,
    },
    "tiny": {
        "l_max": 2,
        "num_layers": 1,
        "num_scalar_features": 32,
        "num_tensor_features": 32,
        "allegro_mlp_depth": 2,
        "allegro_mlp_width": 64,
        "readout_mlp_depth": 0,
    },
    "small": {
        "l_max": 2,
        "num_layers": 2,
        "num_scalar_features": 64,
        "num_tensor_features": 64,
        "allegro_mlp_depth": 2,
        "allegro_mlp_width": 256,
    },
    "medium": {
        "l_max": 3,
        "num_layers": 2,
        "num_scalar_features": 64,
        "num_tensor_features": 64,
        "allegro_mlp_depth": 2,
        "allegro_mlp_width": 256,
    },
    "large": {
        "l_max": 3,
        "num_layers": 3,
        "num_scalar_features": 128,
        "num_tensor_features": 128,
        "allegro_mlp_depth": 3,
        "allegro_mlp_width": 512,
    },
}
_NEQUIP_PRESETS = {
    "S": {"num_layers": 2, "l_max": 1, "num_features": [128, 64]},
    "M": {"num_layers": 4, "l_max": 2, "num_features": [128, 64, 32]},
    "L": {"num_layers": 6, "l_max": 3, "num_features": [128, 64, 32, 32]},
    "XL": {"num_layers": 6, "l_max": 4, "num_features": [320, 96, 64, 32, 32]},
}


ALLEGRO_PRESETS, NEQUIP_PRESETS = tuple(_ALLEGRO_PRESETS), tuple(_NEQUIP_PRESETS)
PRESETS = ALLEGRO_PRESETS + NEQUIP_PRESETS
"""Names that :func:`preset` knows."""


def preset(name: str, **options: Any) -> AllegroConfig | NequIPConfig:
    """The named architecture: Allegro nano/tiny/small/medium/large or NequIP S/M/L/XL; ``options`` override its values.

    Raises:
        ValueError: no such preset.
    """
    if name in _ALLEGRO_PRESETS:
        return AllegroConfig(**{**_SPICE, **_ALLEGRO_PRESETS[name], **options})
    if name in _NEQUIP_PRESETS:
        shared = {"parity": False, "type_embed_num_features": 32, "radial_mlp_depth": 1, "radial_mlp_width": 128}
        return NequIPConfig(**{**shared, **_NEQUIP_PRESETS[name], **options})
    raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
