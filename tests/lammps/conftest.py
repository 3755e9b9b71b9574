"""Fixtures: the plugin, and the analytic artifacts of ``force_styles/``, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.analytic import LennardJones
from support.artifacts import with_metadata
from support.engine import load_model, open_engine
from support.force_styles import FOLDER, ForceStyle


@pytest.fixture(scope="session")
def plugin_folder() -> Path:
    from nequip_md.lammps import build

    return build()


@pytest.fixture(scope="session")
def force_styles() -> dict[str, ForceStyle]:
    """Every file of ``force_styles/`` by its name."""
    return {path.stem: ForceStyle.load(path) for path in sorted(FOLDER.glob("*.yaml"))}


@pytest.fixture(scope="session")
def artifacts(force_styles, plugin_folder, made_once):
    """``artifacts(name)``: the potential of that file, compiled."""
    return lambda name: made_once(f"{name}.pt2", force_styles[name].write_artifact)


@pytest.fixture(scope="session")
def lj_model(force_styles) -> LennardJones:
    return force_styles["lj"].analytic_model()


@pytest.fixture(scope="session")
def lj_artifact(artifacts) -> Path:
    """A strictly local artifact with types Ar and Ne and cutoffs for each pair."""
    return artifacts("lj")


@pytest.fixture(scope="session")
def eam(force_styles, artifacts, tmp_path_factory) -> tuple[Path, str]:
    """A many-body potential twice: the artifact (types Ar and Ne), and input lines for LAMMPS' own eam/alloy."""
    tables = tmp_path_factory.mktemp("eam") / "eam.setfl"
    force_styles["eam"].analytic_model().write_setfl(tables, ["Ar", "Ne"])
    return artifacts("eam"), f"pair_style eam/alloy\npair_coeff * * {tables} Ar Ne\n"


@pytest.fixture(scope="session")
def eam_messages(artifacts, eam) -> tuple[Path, str]:
    """As ``eam``, but the artifact passes messages: total energy, forces and virials are the same, energies of atoms are not."""
    return artifacts("eam_messages"), eam[1]


@pytest.fixture(scope="session")
def doctored(lj_artifact, tmp_path_factory):
    """``doctored(format_version="1")``: the path of a copy of the artifact with other metadata; None removes a key."""
    folder = tmp_path_factory.mktemp("doctored")

    def make(**changes: str | None) -> Path:
        path = folder / ("-".join(f"{k}_{v}" for k, v in changes.items()).replace(" ", "_") + ".pt2")
        if path.exists():
            return path
        return with_metadata(lj_artifact, path, **changes)

    return make


@pytest.fixture(scope="session")
def library(plugin_folder):
    return open_engine(plugin_folder)


@pytest.fixture
def load(library):
    """``load(path, device=..., ...)``: a handle, or the status and message of a refusal."""
    handles = []

    def make(path, **options):
        loaded = load_model(library, path, **options)
        if not isinstance(loaded, tuple):
            handles.append(loaded)
        return loaded

    yield make
    for handle in handles:
        library.nequip_md_free(handle)
