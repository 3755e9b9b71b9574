"""Fixtures that several test files share. Small models are compiled once for the whole run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides at its first import whether kernels are compiled or interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

# small tensors gain nothing from threads; tests of threads set their own number
torch.set_num_threads(1)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--lammps-source", metavar="DIR", help="LAMMPS source tree to build with the pair style in it")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Reference data that lies beside the project; a test that needs it is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip("the reference data (../shared/data) is not here")
    return DATA


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """(checkpoint, artifact) paths by name: ``allegro_fp64``, ``allegro_fp32`` and ``nequip_fp64``, made on demand.

    Random weights, types H and O, built by the commands' own code: a native checkpoint, then ``nequip-md-export``.
    """
    from nequip_md.checkpoint import save
    from nequip_md.export.cli import export
    from nequip_md.model import AllegroConfig, NequIPConfig, build_model

    folder = tmp_path_factory.mktemp("models")
    shared = {"type_names": ["H", "O"], "cutoff": 4.0, "avg_num_neighbors": 18.0, "energy_scales": 0.7,
              "energy_shifts": {"H": -1.5, "O": -4.0}, "pair_cutoffs": {"H": {"H": 3.2}}}
    configs = {
        "allegro": AllegroConfig(**shared, l_max=2, num_layers=2, num_scalar_features=16, num_tensor_features=8),
        "nequip": NequIPConfig(**shared, l_max=1, num_layers=2, num_features=8, radial_mlp_width=16),
    }
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            kind, precision = name.split("_")
            torch.manual_seed(7)
            model = build_model(configs[kind].model_copy(update={"dtype": "float64" if precision == "fp64" else "float32"}))
            checkpoint, artifact = folder / f"{name}.nqmd", folder / f"{name}.pt2"
            save(checkpoint, model)
            export(checkpoint, artifact, device="cpu", precision=precision)
            made[name] = checkpoint, artifact
        return made[name]

    return make
