"""Warnings when atoms or forces leave a model's training data."""

from __future__ import annotations

import re
import warnings

import pytest
from ase import Atoms

from nequip_md import ExtrapolationWarning, NequIPMDError
from nequip_md.calculators import NequIPMDCalculator
from support.artifacts import with_metadata
from support.eager import EagerArtifact, SmoothLennardJones

CLOSEST = "3.0 2.0 2.0 0.0"  # Ar-Ar, Ar-Ne; no pair of Ne was seen


def noble_gas(**metadata: str) -> EagerArtifact:
    artifact = EagerArtifact(SmoothLennardJones(), ["Ar", "Ne"], [[8.0, 8.0], [8.0, 8.0]])
    artifact.metadata |= metadata
    return artifact


def warned(artifact, symbols: str, distance: float, times: int = 1, **options) -> list[str]:
    """Messages when a third atom, far from both, precedes two atoms that are ``distance`` apart."""
    atoms = Atoms(f"Ar{symbols}", positions=[[0, 0, 30], [0, 0, 0], [distance, 0, 0]])
    atoms.calc = NequIPMDCalculator(artifact, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            atoms.positions[0, 2] += 0.1
            atoms.get_forces()
    assert all(w.category is ExtrapolationWarning for w in caught)
    return [str(w.message) for w in caught]


CLOSE = {  # symbols and distance of two atoms, what is said of them
    "within 10 % of the closest": ("Ar2", 2.75, None),
    "too close": ("Ar2", 2.65, r"^atoms 1 \(Ar\) and 2 \(Ar\) are 2\.65 angstrom apart, .* training data 3 angstrom"),
    "such a pair may be closer": ("ArNe", 2.8, None),
    "two types": ("NeAr", 1.75, r"^atoms 1 \(Ne\) and 2 \(Ar\) are 1\.75 angstrom apart, .* training data 2 angstrom"),
    "a pair of which nothing is known": ("Ne2", 0.5, None),
}


@pytest.mark.parametrize("case", CLOSE)
def test_close_atoms(case):
    symbols, distance, words = CLOSE[case]
    messages = warned(noble_gas(closest_distances=CLOSEST), symbols, distance, times=3)
    assert len(messages) == (0 if words is None else 1), "one warning for each calculator"
    assert all(re.search(words, message) for message in messages)


def test_large_forces():
    artifact = noble_gas(largest_force="0.01")
    assert warned(artifact, "Ar2", 4.5, times=2) == []
    (message,) = warned(artifact, "Ar2", 3.0, times=2)
    found = re.match(
        r"the force on atom [12] \(Ar\) is ([\d.]+) eV/angstrom, .* training data 0.01 eV/angstrom", message
    )
    six, envelope = (3.4 / 3.0) ** 6, 1 - (3.0 / 8.0) ** 2
    slope = 24 * 0.0104 / 3.0 * (2 * six**2 - six) * envelope**3
    slope += 4 * 0.0104 * (six**2 - six) * 3 * envelope**2 * 2 * 3.0 / 8.0**2
    assert float(found.group(1)) == pytest.approx(slope, rel=2e-3)


def test_each_kind_is_reported_once():
    artifact = noble_gas(closest_distances=CLOSEST, largest_force="0.01")
    assert [m.split()[0] for m in warned(artifact, "Ar2", 2.5, times=3)] == ["atoms", "the"]


def test_what_is_not_guarded():
    """There is no warning with guard=False, or if the artifact has no record of its training data."""
    for artifact, options in (
        (noble_gas(closest_distances=CLOSEST, largest_force="0.01"), {"guard": False}),
        (noble_gas(), {}),
        (noble_gas(closest_distances="", largest_force=""), {}),
        (noble_gas(closest_distances="0 0 0 0", largest_force="0.0"), {}),
    ):
        assert warned(artifact, "Ar2", 2.0, **options) == []


@pytest.mark.parametrize("broken", [{"closest_distances": "1.0 2.0"}, {"largest_force": "much"}])
def test_metadata_that_cannot_be_read(broken):
    with pytest.raises(NequIPMDError, match="closest_distances or largest_force cannot be read"):
        NequIPMDCalculator(noble_gas(**broken))
    NequIPMDCalculator(noble_gas(**broken), guard=False)


def test_a_file(small_models, tmp_path):
    """Written into an artifact, found by the calculator."""
    path = with_metadata(small_models("allegro_fp64")[1], tmp_path / "a.pt2", closest_distances="1.4 0.9 0.9 2.2")
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.7, 0, 0], [0, 1.0, 0]], calculator=NequIPMDCalculator(path))
    with pytest.warns(ExtrapolationWarning, match=r"atoms [01] \([HO]\) and [01] \([HO]\) are 0.7 angstrom apart"):
        atoms.get_potential_energy()
