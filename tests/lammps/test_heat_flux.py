"""The heat flux of compute heat/flux with the pair style's centroid virial is exact for strictly local models (docs/engine.md)."""

from __future__ import annotations

import pytest

from support.lammps_compare import assert_heat_flux


@pytest.mark.parametrize(("ranks", "newton"), [(1, "on"), (2, "on"), (2, "off")])
def test_embedded_atoms(ranks, newton, eam, tmp_path):
    assert_heat_flux(eam[0], tmp_path, ranks=ranks, newton=newton)


def test_allegro(small_models, tmp_path):
    artifact = small_models("allegro_fp64")[1]
    assert_heat_flux(artifact, tmp_path, ranks=2, types="H O")
