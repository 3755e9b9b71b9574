"""Graphs against a loop over images and ASE's own list; batches, padding, and forces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nequip_md import NequIPMDError
from nequip_md.graph import (
    Graph,
    Structure,
    atomic_virials,
    batch_graphs,
    build_graph,
    build_graphs,
    forces_from_gradient,
    neighbors,
    pad_graph,
    stress_from_gradient,
    total_energy,
    unbatch_graph,
    virial_from_gradient,
)
from support.graph_cases import NAMES, PAIR_CUTOFFS, STRUCTURES, image_loop, of_graph, rows
from support.structures import single_atom, small_molecule, triclinic_crystal, water_box


@pytest.mark.parametrize("name", STRUCTURES)
def test_edges_against_image_loop(name):
    atoms = STRUCTURES[name]()
    graph = build_graph(Structure.from_ase(atoms, NAMES), PAIR_CUTOFFS)
    expected = image_loop(atoms, PAIR_CUTOFFS)
    found = of_graph(graph)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert graph.num_edges > 0 or name == "single_atom"


@pytest.mark.parametrize("cutoff", [1.3, 4.0, 6.5])
@pytest.mark.parametrize("name", STRUCTURES)
def test_edges_against_ase(name, cutoff):
    atoms = STRUCTURES[name]()
    atoms.cell[~atoms.pbc] = 0.0  # ASE's list wants an invertible cell
    found = of_graph(build_graph(Structure.from_ase(atoms, NAMES), cutoff))
    expected = rows(*neighbor_list("ijD", atoms, cutoff))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    cell=st.lists(st.floats(-5, 5), min_size=9, max_size=9),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 10**6),
    atoms=st.integers(1, 8),
    cutoff=st.floats(0.5, 5.0),
)
def test_random_cells(cell, pbc, seed, atoms, cutoff):
    cell = np.reshape(cell, (3, 3))
    lengths = np.linalg.norm(cell, axis=1)
    assume(lengths.min() > 1.0 and abs(np.linalg.det(cell)) > 0.15 * lengths.prod())
    rng = np.random.default_rng(seed)
    structure = Atoms(rng.choice(NAMES, atoms), rng.uniform(-6, 6, (atoms, 3)), cell=cell, pbc=pbc)
    cutoffs = cutoff * rng.uniform(0.5, 1.0, (3, 3))
    found, expected = (
        of_graph(build_graph(Structure.from_ase(structure, NAMES), cutoffs)),
        image_loop(structure, cutoffs),
    )
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", STRUCTURES)
def test_layout(name):
    atoms = STRUCTURES[name]()
    graph = build_graph(Structure.from_ase(atoms, NAMES), 4.5)
    n, e = len(atoms), graph.num_edges
    assert [t.dtype for t in graph.tensors] == [torch.float64, torch.int64, torch.int64, torch.int64]
    assert [tuple(t.shape) for t in graph.tensors] == [(e, 3), (2, e), (n + 1,), (n,)]
    counts = torch.bincount(graph.edge_index[0], minlength=n)
    assert torch.equal(graph.row_ptr, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))
    assert (graph.edge_index[0].diff() >= 0).all()
    assert [NAMES[t] for t in graph.node_types.tolist()] == atoms.get_chemical_symbols()
    assert graph.graph_ptr.tolist() == [0, n]


def with_pbc(cell, pbc=True):
    return Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]], cell=cell, pbc=pbc)


def with_position(value):
    atoms = molecule("H2O")
    atoms.positions[1, 2] = value
    return atoms


ERRORS = {
    "unknown element": (lambda: molecule("CH3SH"), {}, "no type for S; its types are C, H, O"),
    "no cell": (lambda: with_pbc([0, 0, 0]), {}, "cell vector 1, which is zero"),
    "no third vector": (lambda: with_pbc([3, 3, 0]), {}, "cell vector 3, which is zero"),
    "flat cell": (lambda: with_pbc([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), {}, "linearly dependent"),
    "parallel vectors": (
        lambda: with_pbc([[3, 0, 0], [3, 0, 0], [0, 0, 3]], (True, True, False)),
        {},
        "linearly dependent",
    ),
    "cell too long": (lambda: with_pbc([3, 3, 2e9]), {}, r"cell .* longer than 1e\+09 angstrom"),
    "cell too small": (lambda: with_pbc([0.01, 0.01, 0.01]), {}, "has probably collapsed"),
    "cell not finite": (lambda: with_pbc([3, 3, float("inf")]), {}, "cell .* is not finite"),
    "NaN position": (lambda: with_position(float("nan")), {}, "position of atom 1 .* not finite"),
    "far position": (lambda: with_position(-3e9), {}, r"position of atom 1 .* farther than 1e\+09 angstrom"),
    "infinite position": (lambda: with_position(float("inf")), {}, "position of atom 1 .* not finite"),
    "cutoffs of wrong shape": (lambda: molecule("H2O"), {"cutoffs": [[3.0, 3.0]]}, r"shape \(1, 2\); give one number"),
    "cutoffs in a row": (lambda: molecule("H2O"), {"cutoffs": [3.0, 3.0, 3.0]}, r"shape \(3,\); give one number"),
    "too few cutoffs": (
        lambda: molecule("H2O"),
        {"cutoffs": np.full((2, 2), 3.0)},
        "an atom has type 2, but there are cutoffs for 2 types only",
    ),
    "cutoff not positive": (lambda: molecule("H2O"), {"cutoffs": 0.0}, "must be positive"),
    "cutoff not a number": (lambda: molecule("H2O"), {"cutoffs": float("nan")}, "must be positive"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused(case):
    structure, options, message = ERRORS[case]
    with pytest.raises(NequIPMDError, match=message):
        build_graph(Structure.from_ase(structure(), NAMES), **{"cutoffs": 3.0, **options})


def assert_same(found: Graph, expected: Graph):
    """The same edges in the same order; their vectors up to the rounding of another order of sums."""
    for name in ("edge_index", "row_ptr", "node_types", "graph_ptr"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.edge_vectors, expected.edge_vectors, rtol=1e-13, atol=1e-13)


@pytest.fixture(params=["distances", "trees", "one by one", "all at once"])
def search(request, monkeypatch):
    """Every way that a search of many structures can go."""
    few, group = {"distances": (10**9, 300), "trees": (0, 300), "one by one": (2000, 1), "all at once": (2000, 10**9)}[
        request.param
    ]
    monkeypatch.setattr(neighbors, "_FEW", few)
    monkeypatch.setattr(neighbors, "_GROUP", group)


@pytest.mark.parametrize("cutoffs", [1.3, 4.0, PAIR_CUTOFFS])
def test_many_structures_are_searched_as_each_alone(search, cutoffs):
    frames = [Atoms(), *(f() for f in STRUCTURES.values()), Atoms(cell=[3, 3, 3], pbc=True), single_atom(), Atoms()]
    structures = [Structure.from_ase(atoms, NAMES) for atoms in frames]
    graphs = build_graphs(structures, cutoffs)
    assert len(graphs) == len(frames)
    for graph, structure, atoms in zip(graphs, structures, frames):
        assert_same(graph, build_graph(structure, cutoffs))
        expected = image_loop(atoms, np.broadcast_to(cutoffs, (3, 3))) if len(atoms) else np.zeros((0, 5))
        np.testing.assert_allclose(of_graph(graph), expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 6),
    most_atoms=st.integers(1, 30),
    size=st.floats(1.2, 12.0),
    cutoff=st.floats(0.5, 5.0),
)
def test_many_random_structures(seed, count, most_atoms, size, cutoff):
    """Against a search of each alone, and ASE's own list; cells from much smaller than the cutoff to larger."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        cell = size * rng.uniform(0.7, 1.5, (3, 1)) * (np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)))
        n = rng.integers(0, most_atoms + 1)
        positions = rng.uniform(-1.5, 1.5, (n, 3)) * size
        frames.append(Atoms(rng.choice(NAMES, n), positions, cell=cell, pbc=rng.integers(0, 2, 3)))
    structures = [Structure.from_ase(atoms, NAMES) for atoms in frames]
    graphs = build_graphs(structures, cutoff)
    assert len(graphs) == count
    for graph, structure, atoms in zip(graphs, structures, frames):
        assert_same(graph, build_graph(structure, cutoff))
        expected = rows(*neighbor_list("ijD", atoms, cutoff)) if len(atoms) else np.zeros((0, 5))
        found = of_graph(graph)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_no_structures():
    assert build_graphs([], 3.0) == []


def test_one_bad_structure_of_many_is_refused():
    structures = [Structure.from_ase(a, NAMES) for a in (molecule("H2O"), with_pbc([0.01, 0.01, 0.01]))]
    with pytest.raises(NequIPMDError, match=r"the cell \[\[0.01, .* has probably collapsed"):
        build_graphs(structures, 3.0)


def test_no_atoms():
    graph = build_graph(Structure.from_ase(Atoms(cell=[3, 3, 3], pbc=True), NAMES), 3.0)
    assert (graph.num_nodes, graph.num_edges) == (0, 0)
    padded = pad_graph(graph, cutoff=3.0)
    assert (padded.num_nodes, padded.num_edges) == (2, 2)


# a many-body energy whose derivatives autograd gives: exp of the density around each atom


def node_energy(graph: Graph) -> torch.Tensor:
    weight = 1.0 + 0.3 * graph.node_types[graph.edge_index].sum(0)
    pair = weight * torch.exp(-graph.edge_vectors.norm(dim=1)) * (1 + 0.2 * graph.edge_vectors[:, 0].sin())
    return graph.edge_vectors.new_zeros(graph.num_nodes).index_add(0, graph.edge_index[0], pair).square()


def gradient_of(graph: Graph) -> torch.Tensor:
    vectors = graph.edge_vectors.clone().requires_grad_(True)
    energy = node_energy(Graph(vectors, *graph.tensors[1:]))
    return torch.autograd.grad(energy.sum(), vectors)[0]


def through_positions(atoms: Atoms, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Forces and dE/d(strain) by autograd through positions and strain, not through edge vectors."""
    graph = build_graph(Structure.from_ase(atoms, NAMES), cutoff)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    i, j = graph.edge_index
    shift = graph.edge_vectors - (positions[j] - positions[i]).detach()
    vectors = (positions[j] - positions[i] + shift) @ (torch.eye(3, dtype=torch.float64) + strain)
    energy = node_energy(Graph(vectors, *graph.tensors[1:])).sum()
    slope, by_strain = torch.autograd.grad(energy, (positions, strain))
    return -slope, by_strain


@pytest.mark.parametrize("name", ["water_box", "triclinic_crystal", "one_in_a_small_cell", "small_molecule"])
def test_forces_virial_stress(name):
    atoms = STRUCTURES[name]()
    graph = build_graph(Structure.from_ase(atoms, NAMES), 4.0)
    gradient = gradient_of(graph)
    forces, by_strain = through_positions(atoms, 4.0)
    torch.testing.assert_close(forces_from_gradient(graph, gradient), forces, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(virial_from_gradient(graph, gradient)[0], -by_strain, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(stress_from_gradient(graph, gradient, 7.0)[0], by_strain / 7.0, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(atomic_virials(graph, gradient).sum(0), -by_strain, rtol=1e-11, atol=1e-11)
    assert by_strain.abs().max() > 0.1


def test_force_loss_is_differentiable():
    graph = build_graph(Structure.from_ase(small_molecule(), NAMES), 4.0)
    gradient = torch.randn(
        graph.num_edges, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    pair = batch_graphs([graph, graph])
    assert torch.autograd.gradcheck(lambda g: forces_from_gradient(graph, g), gradient)
    assert torch.autograd.gradcheck(lambda g: stress_from_gradient(pair, g.repeat(2, 1), 3.0), gradient)


def with_ghosts(graph: Graph, owned: int) -> Graph:
    """The first atoms of a graph as owned, the others as ghosts."""
    edges = int(graph.row_ptr[owned])
    return Graph(graph.edge_vectors[:edges], graph.edge_index[:, :edges], graph.row_ptr[: owned + 1], graph.node_types)


@pytest.fixture(params=["plain", "ghosts", "batch of batches"])
def parts(request) -> list[Graph]:
    graphs = [
        build_graph(Structure.from_ase(f(), NAMES), 4.0)
        for f in (water_box, single_atom, small_molecule, lambda: Atoms(), triclinic_crystal)
    ]
    if request.param == "ghosts":
        return [with_ghosts(g, (g.num_nodes + 1) // 2) for g in graphs]
    if request.param == "batch of batches":
        return [batch_graphs(graphs[:2]), batch_graphs(graphs[2:]), graphs[0]]
    return graphs


def test_batch_is_its_parts(parts):
    batch = batch_graphs(parts)
    gradient = torch.cat([gradient_of(g) for g in parts])
    torch.testing.assert_close(node_energy(batch), torch.cat([node_energy(g) for g in parts]), rtol=0, atol=0)
    torch.testing.assert_close(gradient_of(batch), gradient, rtol=0, atol=0)
    energies = torch.cat([total_energy(g, node_energy(g)) for g in parts])
    torch.testing.assert_close(total_energy(batch, node_energy(batch)), energies, rtol=1e-13, atol=1e-13)
    volumes = torch.arange(1.0, batch.num_graphs + 1, dtype=torch.float64)
    stress = torch.cat([virial_from_gradient(g, gradient_of(g)) for g in parts]) / -volumes.view(-1, 1, 1)
    torch.testing.assert_close(stress_from_gradient(batch, gradient, volumes), stress, rtol=1e-12, atol=1e-12)
    forces = [forces_from_gradient(g, gradient_of(g)) for g in parts]
    expected = torch.cat(
        [f[: g.num_nodes] for f, g in zip(forces, parts)] + [f[g.num_nodes :] for f, g in zip(forces, parts)]
    )
    torch.testing.assert_close(forces_from_gradient(batch, gradient), expected, rtol=1e-12, atol=1e-12)


def test_a_batch_is_cut_into_its_structures():
    graphs = [
        build_graph(Structure.from_ase(f(), NAMES), 4.0)
        for f in (Atoms, water_box, single_atom, small_molecule, Atoms, triclinic_crystal)
    ]
    parts = unbatch_graph(batch_graphs([batch_graphs(graphs[:2]), *graphs[2:]]))
    assert len(parts) == len(graphs)
    for part, graph in zip(parts, graphs):
        for field in ("edge_vectors", "edge_index", "row_ptr", "node_types", "graph_ptr"):
            assert torch.equal(getattr(part, field), getattr(graph, field)), field


@pytest.mark.parametrize(("min_edges", "min_nodes"), [(2, 2), (10_000, 2), (2, 300), (10_000, 300), (0, 0)])
def test_padding(parts, min_edges, min_nodes):
    for graph in [*parts, batch_graphs(parts)]:
        if graph.num_nodes == 0 and (min_edges, min_nodes) != (2, 2):
            continue
        padded = pad_graph(graph, min_edges, min_nodes, cutoff=4.0)
        n, e = graph.num_nodes, graph.num_edges
        assert padded.num_nodes == max(n, min_nodes) and padded.num_edges == max(e, min_edges)
        assert torch.equal(padded.row_ptr.diff(), torch.bincount(padded.edge_index[0], minlength=padded.num_nodes))
        assert (padded.edge_index[0].diff() >= 0).all()
        assert torch.equal(padded.edge_vectors[:e], graph.edge_vectors)
        assert (padded.edge_vectors[e:].norm(dim=1) == 8.0).all()
        # the edges see the same types as before, and the ghosts are still the same
        assert torch.equal(padded.node_types[padded.edge_index[:, :e]], graph.node_types[graph.edge_index])
        assert torch.equal(padded.node_types[padded.num_nodes :], graph.node_types[n:])
        # phantoms belong to no structure
        gradient = torch.cat([gradient_of(graph), torch.zeros(padded.num_edges - e, 3, dtype=torch.float64)])
        torch.testing.assert_close(virial_from_gradient(padded, gradient), virial_from_gradient(graph, gradient[:e]))
        energy = torch.cat([node_energy(graph), torch.full((padded.num_nodes - n,), 1e6, dtype=torch.float64)])
        torch.testing.assert_close(total_energy(padded, energy), total_energy(graph, energy[:n]))


def test_padding_and_batching_refuse():
    graph = build_graph(Structure.from_ase(single_atom(), NAMES), 3.0)
    empty = build_graph(Structure.from_ase(Atoms(), NAMES), 3.0)
    small = Structure.from_ase(small_molecule(), NAMES)
    with pytest.raises(NequIPMDError, match="cannot be batched"):
        batch_graphs([graph, pad_graph(graph, cutoff=3.0)])
    for whole in (pad_graph(graph, cutoff=3.0), with_ghosts(build_graph(small, 3.0), 4)):
        with pytest.raises(NequIPMDError, match="with ghosts or phantom atoms cannot be cut"):
            unbatch_graph(whole)
    with pytest.raises(NequIPMDError, match="no graph"):
        batch_graphs([])
    with pytest.raises(NequIPMDError, match="need an atom"):
        pad_graph(empty, min_edges=2, min_nodes=0, cutoff=3.0)
