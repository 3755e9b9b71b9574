"""The peer: upstream's model with the same hyperparameters and weights, compiled by upstream's own tools."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from nequip_md import inductor_cache
from nequip_md.artifact import Artifact
from nequip_md.checkpoint import upstream_allegro, upstream_nequip
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph, forces_from_gradient
from nequip_md.model import AllegroConfig, Potential, PotentialConfig, build_model

FORCE_TOLERANCE = {"fp64": 1e-3, "fp32": 1e-3, "tf32": 3e-2}
"""Largest difference, relative to the largest force; a guard against comparing two different models, not a test of accuracy."""


def check_peer(config: PotentialConfig, atoms: Atoms) -> None:
    """
    Raises:
        NequIPMDError: upstream's packages are not installed, or the comparison is not implemented for this.
    """
    packages = ["nequip", "allegro"] if isinstance(config, AllegroConfig) else ["nequip"]
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        raise NequIPMDError(f"--peer needs upstream's packages ({error}); pip install nequip nequip-allegro") from error
    if not atoms.pbc.all():
        raise NequIPMDError("--peer needs a structure that is periodic in three directions")


@contextmanager
def _their_settings() -> Iterator[None]:
    """Upstream computes under float64 as PyTorch's default dtype; our own code is compiled under the usual one."""
    # upstream's own comparison after compiling is absolute (5e-5 eV/angstrom) and refuses large forces; ours is relative.
    # It reads this when it is imported.
    os.environ.setdefault("NEQUIP_SKIP_AOTI_MODEL_CHECK", "1")
    from nequip.utils.global_state import set_global_state

    before = torch.get_default_dtype()
    set_global_state(allow_tf32=False)
    torch.set_default_dtype(torch.float64)  # set_global_state does so at its first call only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def _options(config: PotentialConfig) -> dict[str, Any]:
    """Arguments of upstream's ``AllegroModel`` or ``NequIPGNNModel`` that mean the same as ``config``."""
    same = ["type_names", "l_max", "parity", "num_layers"]
    mlps = [("readout_mlp", "readout_mlp")]
    if isinstance(config, AllegroConfig):
        same += ["num_scalar_features", "num_tensor_features"]
        mlps += [("two_body_mlp", "scalar_embed_mlp"), ("allegro_mlp", "allegro_mlp")]
        options = _embedding_options(config) | {"tp_path_channel_coupling": config.path_channel_coupling}
    else:
        same += ["num_features", "type_embed_num_features", "radial_mlp_depth", "radial_mlp_width"]
        same += ["num_bessels", "bessel_trainable", "polynomial_cutoff_p"]
        options = {}
    pair = config.pair_potential and {
        "_target_": "nequip.nn.pair_potential.ZBL",
        "units": "metal",
        "chemical_species": config.pair_potential.chemical_species,
    }
    options |= {
        "seed": 0,
        "model_dtype": config.dtype,
        "r_max": config.cutoff,
        "per_edge_type_cutoff": config.pair_cutoffs,
        "avg_num_neighbors": 1.0 if config.avg_num_neighbors is None else config.avg_num_neighbors,
        "per_type_energy_scales": config.energy_scales,
        "per_type_energy_shifts": config.energy_shifts,
        "per_type_energy_scales_trainable": config.energy_scales_trainable,
        "per_type_energy_shifts_trainable": config.energy_shifts_trainable,
        "pair_potential": pair,
        **{key: getattr(config, key) for key in same},
    }
    for ours, theirs in mlps:
        options |= {f"{theirs}_hidden_layers_{key}": getattr(config, f"{ours}_{key}") for key in ("depth", "width")}
        options[f"{theirs}_nonlinearity"] = getattr(config, f"{ours}_nonlinearity")
    return options


def _embedding_options(config: AllegroConfig) -> dict[str, Any]:
    radial = config.radial_embedding.model_dump(exclude={"kind"})
    if config.radial_embedding.kind == "bessel":
        radial |= {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "polynomial_cutoff_p": config.polynomial_cutoff_p}
    else:
        radial |= {"_target_": "allegro.nn.TwoBodySplineScalarEmbed"}
    return {"radial_chemical_embed": radial, "radial_chemical_embed_dim": config.radial_embedding_dim}


def build_pair(config: PotentialConfig, compile_mode: str = "eager") -> tuple[nn.Module, Potential]:
    """Upstream's model with its own random weights, and ours with the same weights.

    Args:
        compile_mode: upstream's, ``eager`` or ``compile``; the latter compiles the model when it is first called, for training.
    """
    with _their_settings():
        if isinstance(config, AllegroConfig):
            from allegro.model import AllegroModel

            theirs, convert = AllegroModel(**_options(config), compile_mode=compile_mode), upstream_allegro
        else:
            from nequip.model import NequIPGNNModel

            theirs, convert = NequIPGNNModel(**_options(config), compile_mode=compile_mode), upstream_nequip
    prefix = "model.func."
    state = {k.removeprefix(prefix): v.clone() for k, v in theirs.state_dict().items() if k.startswith(prefix)}
    ours = build_model(config)
    ours.load_state_dict(convert.state_from_upstream(config, state))
    return theirs.eval(), ours.eval()


def _name_and_modifier(config: PotentialConfig, device: str) -> tuple[str, str | None]:
    """What a table calls the peer, and upstream's name of the fastest tensor product that can be had here."""
    if isinstance(config, AllegroConfig):
        return f"nequip-allegro {version('nequip-allegro')}", "enable_TritonContracter" if device == "cuda" else None
    name = f"nequip {version('nequip')}"
    if device == "cuda" and find_spec("openequivariance"):
        return f"{name}, OpenEquivariance {version('openequivariance')}", "enable_OpenEquivariance"
    return name, None


class PeerArtifact:
    """Upstream's model, compiled as ``nequip-compile --mode aotinductor --target ase`` does, TF32 off.

    On CUDA with a modifier: Allegro with ``enable_TritonContracter``, upstream's fastest tensor product that needs no other package;
    NequIP with ``enable_OpenEquivariance``, if that package is installed.
    """

    def __init__(self, model: nn.Module, config: PotentialConfig, path: Path, device: str, sample: Atoms):
        """
        Args:
            path: the file to write, ``*.nequip.pt2``.
            sample: a structure to trace with.
        """
        with _their_settings():
            from nequip.model.modify_utils import modify
            from nequip.scripts._compile_utils import ASE_TARGET, single_frame_batch_map_settings
            from nequip.utils.aot import aot_export_model

            self.config, self.device = config, device
            self.name, modifier = _name_and_modifier(config, device)
            self.fields, self.outputs = ASE_TARGET["input"], ASE_TARGET["output"]
            if modifier:
                model = modify(model, [{"modifier": modifier}])
            dims = {"node": torch.export.Dim("num_nodes", min=2), "edge": torch.export.Dim("num_edges", min=2)}
            data = dict(zip(self.fields, self.inputs(sample)))
            inductor_cache.use_private_cache()
            with torch._inductor.config.patch(inductor_cache.OPTIONS):
                aot_export_model(
                    model, device, self.fields, self.outputs, data, single_frame_batch_map_settings(dims), str(path)
                )
        self._run = torch._inductor.aoti_load_package(str(path))

    def inputs(self, atoms: Atoms) -> list[Tensor]:
        """Positions, edges, types and cell of a structure as upstream's artifact takes them, on the device."""
        with _their_settings():
            from nequip.data import AtomicDataDict, from_ase
            from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

            names = self.config.type_names
            data = from_ase(atoms)
            data = ChemicalSpeciesToAtomTypeMapper(names, chemical_species_to_atom_type_map={n: n for n in names})(data)
            cutoffs = {"r_max": self.config.cutoff, "per_edge_type_cutoff": self.config.pair_cutoffs}
            data = NeighborListTransform(**cutoffs, type_names=names)(data)
            data = AtomicDataDict.batched_from_list([data])
            return [data[field].to(self.device) for field in self.fields]

    def __call__(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self._run(*inputs)))

    def compare(self, artifact: Artifact, atoms: Atoms) -> float:
        """Largest difference of a force component, relative to the largest one.

        Raises:
            NequIPMDError: it exceeds the tolerance: the two do not compute the same.
        """
        graph = build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs).to(self.device)
        ours = forces_from_gradient(graph, artifact(graph)[1])
        theirs = self(self.inputs(atoms))["forces"]
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= FORCE_TOLERANCE[artifact.metadata["precision"]]:
            raise NequIPMDError(
                f"forces of the two packages differ by {difference:.1e} of the largest force, so their times "
                "cannot be compared. Please report this with the model's configuration"
            )
        return difference
