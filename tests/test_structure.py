"""What a structure holds, what it refuses, and its making from ase.Atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nequip_md import NequIPMDError
from nequip_md.graph import Structure, build_graph
from support.graph_cases import NAMES, STRUCTURES
from support.structures import slab, triclinic_crystal

FIELDS = {
    "positions": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.8]]),
    "cell": np.diag([3.0, 4.0, 5.0]),
    "pbc": np.array([True, False, True]),
    "types": np.array([1, 0]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_from_ase(name):
    atoms = STRUCTURES[name]()
    structure = Structure.from_ase(atoms, NAMES)
    assert structure.num_atoms == len(atoms)
    np.testing.assert_array_equal(structure.positions, atoms.positions)
    np.testing.assert_array_equal(structure.cell, atoms.cell[:])
    np.testing.assert_array_equal(structure.pbc, atoms.pbc)
    assert [NAMES[t] for t in structure.types] == atoms.get_chemical_symbols()


@pytest.mark.parametrize("name", STRUCTURES)
def test_invertible_cell(name):
    """Periodic vectors are kept; the others become orthogonal unit vectors normal to them."""
    structure = Structure.from_ase(STRUCTURES[name](), NAMES)
    cell, pbc = structure.invertible_cell, structure.pbc
    np.testing.assert_array_equal(cell[pbc], structure.cell[pbc])
    expected = np.zeros((3, 3))
    expected[np.ix_(pbc, pbc)] = (cell @ cell.T)[np.ix_(pbc, pbc)]
    expected[~pbc, ~pbc] = 1
    np.testing.assert_allclose(cell @ cell.T, expected, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    "atoms", [triclinic_crystal(), Atoms("H", cell=[[2, 0, 0], [1, 3, 0], [0, 0, -4]]), slab(), molecule("H2O")]
)
def test_volume(atoms):
    """Whatever is periodic; none where the vectors span none."""
    volume = Structure.from_ase(atoms, [*NAMES]).volume
    assert volume == (pytest.approx(atoms.get_volume(), rel=1e-12) if atoms.cell.rank == 3 else None)


def test_volume_of_a_flat_cell():
    assert replace(Structure(**FIELDS), cell=[[3, 0, 0], [0, 4, 0], [3, 4, 0]], pbc=[True, True, False]).volume is None


def test_a_structure_does_not_change():
    """It copies what it is made of, and nothing can be written into it."""
    given = {name: value.copy() for name, value in FIELDS.items()}
    structure = Structure(**given)
    for name, value in given.items():
        value[...] = 0
        np.testing.assert_array_equal(getattr(structure, name), FIELDS[name])
        with pytest.raises(ValueError, match="read-only"):
            getattr(structure, name)[...] = 0
    graph = build_graph(structure, 3.0)
    graph.node_types[:] = 7
    np.testing.assert_array_equal(structure.types, FIELDS["types"])


@pytest.mark.parametrize("kind", [np.ndarray.tolist, torch.from_numpy, lambda a: a.astype(a.dtype.newbyteorder())])
def test_kinds_of_arrays(kind):
    structure = Structure(**{name: kind(value) for name, value in FIELDS.items()})
    for name, value in FIELDS.items():
        array = getattr(structure, name)
        assert array.dtype == value.dtype and array.dtype.isnative
        np.testing.assert_array_equal(array, value)


NAN, FAR = float("nan"), 3e9
REFUSED = {
    "one position too few": (
        {"positions": [[0, 0, 0]]},
        r"structure's types must have shape \[1\], not \[2\]",
    ),
    "flat positions": ({"positions": [0, 0, 0]}, r"positions must have shape \[N, 3\], not \[3\]"),
    "positions in two dimensions": (
        {"positions": [[0, 0], [1, 1]]},
        r"positions must have shape \[N, 3\], not \[2, 2\]",
    ),
    "words": ({"positions": "here"}, "positions of a structure must be an array of float64"),
    "ragged": ({"positions": [[0, 0, 0], [1]]}, "positions of a structure must be an array of float64"),
    "lengths of a cell": ({"cell": [3, 4, 5]}, r"cell must have shape \[3, 3\], not \[3\]"),
    "one pbc": ({"pbc": True}, r"pbc must have shape \[3\], not \[\]"),
    "pbc that is no truth": ({"pbc": [2, 0, 1]}, "pbc of a structure must be an array of bool"),
    "half a type": ({"types": [0.5, 1]}, "types of a structure must be an array of int64"),
    "symbols for types": ({"types": ["H", "O"]}, "types of a structure must be an array of int64"),
    "negative type": ({"types": [0, -1]}, "atom 1 has type -1; types are counted from 0"),
    "NaN position": ({"positions": [[0, 0, 0], [0, NAN, 0]]}, r"position of atom 1 .*1 of 2 atoms are not finite"),
    "far position": ({"positions": [[0, 0, -FAR], [0, 0, 0]]}, r"position of atom 0 .* farther than 1e\+09 angstrom"),
    "NaN in the cell": ({"cell": np.diag([NAN, 4, 5])}, "cell .* is not finite"),
    "long cell": ({"cell": np.diag([3, FAR, 5])}, r"cell .* longer than 1e\+09 angstrom"),
    "no cell vector": ({"cell": np.diag([3, 4, 0])}, "periodic along cell vector 3, which is zero"),
    "parallel vectors": ({"cell": [[3, 0, 0], [0, 4, 0], [6, 0, 0]]}, "linearly dependent: the cell has no volume"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    fields, message = REFUSED[case]
    with pytest.raises(NequIPMDError, match=message):
        Structure(**{**FIELDS, **fields})


def test_type_map():
    water = molecule("H2O")
    structure = Structure.from_ase(water, ["hydrogen", "O"], type_map={"H": "hydrogen"})
    assert structure.types.tolist() == [1, 0, 0]
    with pytest.raises(NequIPMDError, match="'D' for H, which is no type of the model; its types are C, H, O"):
        Structure.from_ase(water, NAMES, type_map={"H": "D"})


def test_type_map_is_proposed_where_it_can_be_given():
    methane = molecule("CH4")
    with pytest.raises(
        NequIPMDError, match="no type for C; its types are H, O: type_names must list every element"
    ) as caught:
        Structure.from_ase(methane, ["H", "O"])
    assert "type_map" not in str(caught.value)
    with pytest.raises(NequIPMDError, match="no type for C; its types are H, O: .*give type_map"):
        Structure.from_ase(methane, ["H", "O"], type_map={})
