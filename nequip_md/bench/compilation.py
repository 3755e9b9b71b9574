"""What is timed: the artifact of a preset or checkpoint for each precision, and the peer's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ase import Atoms

from nequip_md.artifact import Artifact, load_artifact
from nequip_md.artifact.metadata import PRECISIONS as DTYPES
from nequip_md.bench import peer
from nequip_md.bench.structures import water_box
from nequip_md.checkpoint import read_info, save
from nequip_md.errors import NequIPMDError
from nequip_md.export import export_checkpoint
from nequip_md.files import FileKind, file_kind
from nequip_md.graph import Structure, build_graph
from nequip_md.model import PRESETS, AllegroConfig, NequIPConfig, PotentialConfig, build_model, preset
from nequip_md.public_models import local_file

PRESET_CUTOFF = 6.0
"""Cutoff of presets, angstrom."""


@dataclass
class Compiled:
    """Artifacts of one model by precision, and what was found on the way."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    peers: dict[str, peer.PeerArtifact] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    """Largest difference of forces between artifact and peer, relative to the largest force."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Compilation of ``ours fp32``, ``peer fp32`` and so on; ours includes the checks of ``nequip-md-export``."""


def preset_config(name: str, atoms: Atoms) -> AllegroConfig | NequIPConfig:
    """The preset with a type for each element of a structure, its mean number of neighbours, and ZBL."""
    elements = sorted(set(atoms.get_chemical_symbols()))
    neighbours = build_graph(Structure.from_ase(atoms, elements), PRESET_CUTOFF).num_edges / len(atoms)
    return preset(
        name,
        type_names=elements,
        cutoff=PRESET_CUTOFF,
        avg_num_neighbors=max(neighbours, 1.0),
        energy_scales=1.0,
        energy_shifts=0.0,
        pair_potential={"chemical_species": elements},
    )


def model_config(model: str, structure: Atoms | None, allow_pickle: bool = False) -> PotentialConfig | None:
    """Configuration of the checkpoint or preset that is named; None for an artifact.

    Args:
        structure: a preset is made for its elements; None means water.

    Raises:
        NequIPMDError: there is no such model.
    """
    path = local_file(model)
    if path.is_file():
        return (
            None
            if path.suffix == ".pt2" or file_kind(path) is FileKind.ARTIFACT
            else read_info(path, allow_pickle=allow_pickle).config
        )
    if model not in PRESETS:
        raise NequIPMDError(f"{model} is neither a file nor a preset; presets are {', '.join(PRESETS)}")
    return preset_config(model, structure or water_box(192))


def random_checkpoint(config: PotentialConfig, path: Path) -> Path:
    """Write a checkpoint with random weights, the same ones at every call."""
    torch.manual_seed(0)
    save(path, build_model(config))
    return path


def compile_all(
    model: str,
    config: PotentialConfig,
    precisions: Sequence[str],
    device: str,
    sample: Atoms,
    folder: Path,
    *,
    with_peer: bool,
    allow_pickle: bool = False,
    report: Callable[[str], None] = print,
) -> Compiled:
    """Artifacts of a model, with random weights if it is a preset, and of its peer.

    Args:
        model: a checkpoint's path, or the name of a public model or a preset.
        sample: the structure on which forces are compared.
        folder: where the artifacts are written.

    Raises:
        NequIPMDError: an artifact cannot be made, or differs from its checkpoint or from the peer.
    """
    result = Compiled()
    for precision in precisions:
        checkpoint = local_file(model)
        if with_peer:
            sized = config.model_copy(update={"dtype": DTYPES[precision]})
            theirs, ours = peer.build_pair(sized)
            checkpoint = folder / f"{precision}.nqmd"
            save(checkpoint, ours)
        elif not checkpoint.is_file():
            checkpoint = random_checkpoint(config, folder / f"{precision}.nqmd")
        report(f"compiling {precision} for {device}")
        compiled = folder / f"{precision}.pt2"
        start = time.perf_counter()
        export_checkpoint(checkpoint, compiled, device=device, precision=precision, allow_pickle=allow_pickle)
        result.seconds[f"ours {precision}"] = time.perf_counter() - start
        result.artifacts[precision] = load_artifact(compiled)
        if with_peer:
            theirs_precision = "fp64" if precision == "fp64" else "fp32"  # TF32 is off there, as by default
            if theirs_precision not in result.peers:
                report(f"compiling the peer, {theirs_precision}")
                file = folder / f"{theirs_precision}.nequip.pt2"
                start = time.perf_counter()
                result.peers[theirs_precision] = peer.PeerArtifact(theirs, sized, file, device, sample)
                result.seconds[f"peer {theirs_precision}"] = time.perf_counter() - start
            difference = result.peers[theirs_precision].compare(result.artifacts[precision], sample)
            result.differences[precision] = difference
            report(f"forces of {precision} and of the peer differ by {difference:.1e} of the largest")
    return result
