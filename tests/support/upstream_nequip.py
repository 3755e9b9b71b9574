"""Upstream's models, built from this package's configurations, as the reference of the model tests.

All computations are done by ``nequip`` 0.19 and ``nequip-allegro`` 0.8 from PyPI, neighbour lists included.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nequip_md.model.config import AllegroConfig, NequIPConfig, PotentialConfig


@dataclass
class Reference:
    """Upstream's results for one structure."""

    energy: float
    """eV"""
    energies: np.ndarray
    """energy of each atom, eV [N]"""
    forces: np.ndarray
    """eV/angstrom [N, 3]"""
    stress: np.ndarray | None
    """(1/V) dE/d(strain), eV/angstrom^3 [3, 3]; None without periodicity"""


def upstream_options(config: PotentialConfig) -> dict[str, Any]:
    """The ``model`` section of an upstream configuration that is equivalent to ``config``."""
    options = {
        "seed": 1,
        "model_dtype": config.dtype,
        "type_names": list(config.type_names),
        "r_max": config.cutoff,
        "per_edge_type_cutoff": config.pair_cutoffs,
        "num_layers": config.num_layers,
        "l_max": config.l_max,
        "parity": config.parity,
        "avg_num_neighbors": 1.0 if config.avg_num_neighbors is None else config.avg_num_neighbors,
        "per_type_energy_scales": config.energy_scales,
        "per_type_energy_shifts": config.energy_shifts,
        "per_type_energy_scales_trainable": config.energy_scales_trainable,
        "per_type_energy_shifts_trainable": config.energy_shifts_trainable,
        "readout_mlp_hidden_layers_depth": config.readout_mlp_depth,
        "readout_mlp_hidden_layers_width": config.readout_mlp_width,
        "readout_mlp_nonlinearity": config.readout_mlp_nonlinearity,
    }
    if config.pair_potential is not None:
        options["pair_potential"] = {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": config.pair_potential.chemical_species,
        }
    if isinstance(config, NequIPConfig):
        return {**options, **_nequip_options(config)}
    return {**options, **_allegro_options(config)}


def _nequip_options(config: NequIPConfig) -> dict[str, Any]:
    same = (
        "num_features",
        "type_embed_num_features",
        "radial_mlp_depth",
        "radial_mlp_width",
        "num_bessels",
        "bessel_trainable",
        "polynomial_cutoff_p",
    )
    return {"_target_": "nequip.model.NequIPGNNModel", **{key: getattr(config, key) for key in same}}


def _allegro_options(config: AllegroConfig) -> dict[str, Any]:
    options = {
        "_target_": "allegro.model.AllegroModel",
        "num_scalar_features": config.num_scalar_features,
        "num_tensor_features": config.num_tensor_features,
        "radial_chemical_embed_dim": config.radial_embedding_dim,
        "tp_path_channel_coupling": config.path_channel_coupling,
    }
    for ours, theirs in (("two_body_mlp", "scalar_embed_mlp"), ("allegro_mlp", "allegro_mlp")):
        options[f"{theirs}_hidden_layers_depth"] = getattr(config, f"{ours}_depth")
        options[f"{theirs}_hidden_layers_width"] = getattr(config, f"{ours}_width")
        options[f"{theirs}_nonlinearity"] = getattr(config, f"{ours}_nonlinearity")
    embedding = config.radial_embedding.model_dump()
    if embedding.pop("kind") == "bessel":
        embedding |= {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "polynomial_cutoff_p": config.polynomial_cutoff_p,
        }
    else:
        embedding |= {"_target_": "allegro.nn.TwoBodySplineScalarEmbed"}
    return {**options, "radial_chemical_embed": embedding}


@contextmanager
def upstream_settings() -> Iterator[None]:
    """Float64 as PyTorch's default, under which upstream builds and evaluates; it sets this itself at its first call only."""
    from nequip.utils.global_state import set_global_state

    before = torch.get_default_dtype()
    set_global_state()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_upstream(config: PotentialConfig, seed: int = 0) -> torch.nn.Module:
    """Upstream's model, with every trainable weight drawn anew.

    Weights that upstream starts at special values (Bessel roots, energy scales and shifts, zeros) are shifted at random, so
    that a conversion that forgets one cannot pass.
    """
    from hydra.utils import get_method

    options = upstream_options(config)
    with upstream_settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_method(options.pop("_target_"))(**options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.add_(0.1 * noise)
    return model.eval()


def upstream_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of an upstream model by name; names start at the network's own modules."""
    prefix = "model.func."
    state = model.state_dict()
    return {key.removeprefix(prefix): state[key].clone() for key in state if key.startswith(prefix)}


@upstream_settings()
def evaluate_upstream(model: torch.nn.Module, config: PotentialConfig, atoms: Atoms) -> Reference:
    """Upstream's energy, forces and stress for one structure, with upstream's neighbour list."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    names = config.type_names
    data = from_ase(Atoms(atoms.get_chemical_symbols(), atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    data = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=names, chemical_species_to_atom_type_map={name: name for name in names}
    )(data)
    data = NeighborListTransform(r_max=config.cutoff, per_edge_type_cutoff=config.pair_cutoffs, type_names=names)(data)
    if data[AtomicDataDict.EDGE_INDEX_KEY].shape[1] == 0:
        data[AtomicDataDict.EDGE_INDEX_KEY] = torch.zeros((2, 0), dtype=torch.int64)
    result = model(AtomicDataDict.batched_from_list([data]))
    stress = result.get("stress") if atoms.pbc.all() else None
    return Reference(
        result["total_energy"].item(),
        result["atomic_energy"].detach().numpy().ravel(),
        result["forces"].detach().numpy(),
        None if stress is None else stress.detach().numpy().reshape(3, 3),
    )
