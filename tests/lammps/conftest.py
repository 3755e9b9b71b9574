"""The plugin and a Lennard-Jones artifact, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.analytic import EmbeddedAtom, LennardJones
from support.artifacts import with_metadata

EPSILON = [[0.0104, 0.008], [0.008, 0.006]]
SIGMA = [[3.4, 3.2], [3.2, 3.0]]
CUTOFFS = [[6.0, 5.5], [5.5, 5.0]]
SHIFTS = [-1.5, -0.25]


@pytest.fixture(scope="session")
def plugin_folder() -> Path:
    from nequip_md.lammps import build

    return build()


@pytest.fixture(scope="session")
def lj_model() -> LennardJones:
    return LennardJones(EPSILON, SIGMA, CUTOFFS, SHIFTS)


@pytest.fixture(scope="session")
def lj_artifact(lj_model, plugin_folder, tmp_path_factory) -> Path:
    """Types Ar and Ne, cutoffs by pair, strictly local."""
    from nequip_md.export import artifact_metadata, write_artifact

    path = tmp_path_factory.mktemp("artifact") / "lj.pt2"
    write_artifact(
        lj_model,
        path,
        artifact_metadata(kind="lennard-jones", type_names=["Ar", "Ne"], cutoff=6.0, pair_cutoffs=CUTOFFS),
    )
    return path


@pytest.fixture(scope="session")
def eam(plugin_folder, tmp_path_factory) -> tuple[Path, str]:
    """A many-body potential twice: the artifact (types Ar and Ne), and input lines for LAMMPS' own eam/alloy."""
    from nequip_md.export import artifact_metadata, write_artifact

    folder = tmp_path_factory.mktemp("eam")
    model = EmbeddedAtom([40.0, 25.0], [0.6, 0.4], [[0.05, 0.04], [0.04, 0.03]], 6.0, SHIFTS)
    write_artifact(
        model, folder / "eam.pt2", artifact_metadata(kind="embedded-atom", type_names=["Ar", "Ne"], cutoff=6.0)
    )
    model.write_setfl(folder / "eam.setfl", ["Ar", "Ne"])
    native = f"pair_style eam/alloy\npair_coeff * * {folder / 'eam.setfl'} Ar Ne\n"
    return folder / "eam.pt2", native


@pytest.fixture(scope="session")
def doctored(lj_artifact, tmp_path_factory):
    """``doctored(format_version="2")``: the path of a copy of the artifact with other metadata; None removes a key."""
    folder = tmp_path_factory.mktemp("doctored")

    def make(**changes: str | None) -> Path:
        path = folder / ("-".join(f"{k}_{v}" for k, v in changes.items()).replace(" ", "_") + ".pt2")
        if path.exists():
            return path
        return with_metadata(lj_artifact, path, **changes)

    return make
