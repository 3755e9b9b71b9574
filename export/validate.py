"""Checks that every artifact must pass, whichever model it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nequip_md.errors import NequIPMDError
from nequip_md.export.validation_systems import (
    crossing_pairs,
    displaced,
    isolated_atoms,
    some_centres,
    strained,
    translated,
    validation_systems,
    without_edge,
)
from nequip_md.graph import (
    Graph,
    Structure,
    batch_graphs,
    build_graph,
    forces_from_gradient,
    pad_graph,
    virial_from_gradient,
)
from nequip_md.model import energy_and_gradient


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: the check, and the system on which the error was largest.
        measured: the error, relative to the largest energy or gradient of the system unless ``name`` says otherwise.
        tolerance: the largest error that is allowed.
    """

    name: str
    measured: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its tolerance; NaN is not."""
        return self.measured <= self.tolerance


@dataclass(frozen=True)
class Tolerances:
    """Tolerances for relative errors, at least ten times those of rounding, and finite-difference steps that suit them.

    Attributes:
        energy: energies of atoms.
        gradient: edge gradients.
        difference: work along a path compared with the difference in energy.
        step: length of that path for each atom, angstrom; also the size of strains.
    """

    energy: float
    gradient: float
    difference: float
    step: float


TOLERANCES = {
    "fp64": Tolerances(energy=1e-10, gradient=1e-9, difference=1e-6, step=2e-3),
    "fp32": Tolerances(energy=2e-5, gradient=1e-4, difference=1e-3, step=3e-2),
    "tf32": Tolerances(energy=2e-2, gradient=5e-2, difference=2e-1, step=1e-1),
}
MINIMUM_GRADIENT = 1e-6
"""Smallest largest force, eV/angstrom: otherwise a model that returns zeros would pass every comparison of forces."""

_TINY = 1e-300  # keeps quotients finite for a model that returns zeros

_INSIDE = 1e-4
"""Distance of a leaving atom from the cutoff, as a fraction of it; u_6 is 6e-11 there and its derivative 2e-6."""
_LEAVING_ENERGY, _LEAVING_GRADIENT = 1e-6, 1e-3
"""Largest energy and gradient of an edge at that distance, besides rounding."""


class Evaluator(Protocol):
    """Interface of evaluators that can be checked, for example :class:`nequip_md.artifact.Artifact`."""

    metadata: dict[str, str]
    type_names: list[str]
    pair_cutoffs: Tensor
    device: torch.device

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor]: ...


def validate_artifact(
    artifact: Evaluator, reference_model: nn.Module | None = None, *, quick: bool = False
) -> list[CheckResult]:
    """Run every check on an artifact.

    Structures consist of its own types: empty, one atom, a pair, dense, elongated, triclinic and larger boxes, all of
    sizes that it was not traced with. The checks are: agreement with the eager model, if it is given; forces and stress
    against differences of the artifact's own energy; padding; isolated atoms; and unless ``quick``, invariance under
    rotation, reflection, translation and permutation, independence of distant parts, evaluation of some of the atoms at
    a time (strictly local models), and smoothness where an atom crosses the cutoff.

    Args:
        reference_model: the eager model (:class:`nequip_md.model.Potential` or the same forward), in the arithmetic of
            the artifact.
        quick: use fewer and smaller systems, which takes a few seconds for a large model.

    Returns:
        One result for each check; a failed check raises no error.

    Raises:
        NequIPMDError: the artifact's precision is unknown.
    """
    precision = artifact.metadata["precision"]
    if precision not in TOLERANCES:
        raise NequIPMDError(f"no tolerances for precision {precision!r}; those known are {', '.join(TOLERANCES)}")
    checks = _Checks(artifact, TOLERANCES[precision], quick)
    with torch.no_grad():
        results = [*checks.signal(), *checks.isolated(reference_model)]
        if reference_model is not None:
            results += checks.agreement(reference_model)
        results += [*checks.differences(), *checks.padding()]
        if not quick:
            results += [*checks.invariance(), *checks.size_consistency(), *checks.chunks(), *checks.smoothness()]
    return results


class _Worst:
    """The largest of several errors, and its system."""

    def __init__(self, name: str, tolerance: float):
        self.name, self.tolerance, self.measured, self.where = name, tolerance, 0.0, ""

    def add(self, error: float | Tensor, where: str) -> None:
        error = float(error)
        if not error <= self.measured and not np.isnan(self.measured):
            self.measured, self.where = error, where

    def result(self) -> CheckResult:
        return CheckResult(f"{self.name} ({self.where})" if self.where else self.name, self.measured, self.tolerance)


class _Checks:
    def __init__(self, artifact: Evaluator, tolerances: Tolerances, quick: bool):
        self.artifact, self.tolerances, self.quick = artifact, tolerances, quick
        self.cutoffs = artifact.pair_cutoffs.cpu().numpy()
        num_types = len(artifact.type_names)
        self.systems = validation_systems(num_types, float(self.cutoffs.max()), quick=quick)
        self.isolated_energy, _ = self.evaluate(isolated_atoms(num_types))
        self.graphs = {name: build_graph(s, self.cutoffs) for name, s in self.systems.items()}
        self.values = {name: self.evaluate(graph) for name, graph in self.graphs.items()}
        typical = next(iter(self.systems))
        energy, gradient = self.values[typical]
        self.typical_energy = self.binding(self.graphs[typical].node_types, energy)
        self.typical_gradient = _largest(gradient)

    def evaluate(self, graph: Graph) -> tuple[Tensor, Tensor]:
        energy, gradient = self.artifact(graph.to(self.artifact.device))
        return energy.cpu(), gradient.cpu()

    def binding(self, types: Tensor, energy: Tensor) -> float:
        """Largest energy of an atom without that of the isolated atom, the reference of relative errors."""
        return _largest(energy - self.isolated_energy[types])

    def binding_energy(self, structure: Structure) -> float:
        """Total energy without that of the isolated atoms, which may be so large that digits are lost."""
        graph = build_graph(structure, self.cutoffs)
        return float((self.evaluate(graph)[0] - self.isolated_energy[graph.node_types]).sum())

    def errors(
        self, graph: Graph, values: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]
    ) -> tuple[float, float]:
        """Relative errors of energies and gradients; for small systems they are relative to a tenth of the typical system's."""
        energy_scale = max(
            self.binding(graph.node_types[: graph.num_nodes], expected[0]), 0.1 * self.typical_energy, _TINY
        )
        gradient_scale = max(_largest(expected[1]), 0.1 * self.typical_gradient, _TINY)
        return tuple(_largest(v - e) / scale for v, e, scale in zip(values, expected, (energy_scale, gradient_scale)))

    def compare(
        self, what: str, cases: Iterator[tuple[str, Graph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
    ) -> list[CheckResult]:
        energy = _Worst(f"energy {what}", self.tolerances.energy)
        gradient = _Worst(f"gradient {what}", self.tolerances.gradient)
        for where, graph, values, expected in cases:
            for worst, error in zip((energy, gradient), self.errors(graph, values, expected)):
                worst.add(error, where)
        return [energy.result(), gradient.result()]

    def signal(self) -> Iterator[CheckResult]:
        not_finite = sum(int((~torch.isfinite(v)).sum()) for values in self.values.values() for v in values)
        yield CheckResult("numbers that are not finite", not_finite, 0)
        yield CheckResult(
            "1 / largest gradient, angstrom/eV", 1 / max(self.typical_gradient, _TINY), 1 / MINIMUM_GRADIENT
        )

    def isolated(self, reference: nn.Module | None) -> Iterator[CheckResult]:
        """The energy of an isolated atom is finite, and the same alone and among atoms beyond its cutoff."""
        not_finite = int((~torch.isfinite(self.isolated_energy)).sum())
        yield CheckResult("isolated atoms whose energy is not finite", not_finite, 0)
        worst = _Worst("isolated atom against many at once, eV", 1e-9)
        many = isolated_atoms(len(self.artifact.type_names))
        for k in range(1 if self.quick else len(self.artifact.type_names)):
            graph = Graph(many.edge_vectors, many.edge_index, many.row_ptr[:2], many.node_types[k : k + 1])
            worst.add(_largest(self.evaluate(graph)[0] - self.isolated_energy[k]), self.artifact.type_names[k])
        yield worst.result()
        if reference is not None:
            error = _largest(self.isolated_energy - _eager(reference, many)[0])
            yield CheckResult(
                "isolated atoms against the eager model, eV", error, 1e-9 * max(1.0, _largest(self.isolated_energy))
            )

    def agreement(self, reference: nn.Module) -> list[CheckResult]:
        def cases():
            for name, graph in self.graphs.items():
                yield name, graph, self.values[name], _eager(reference, graph)
            graph = one_edge(self.cutoffs)
            yield "one edge", graph, self.evaluate(graph), _eager(reference, graph)

        return self.compare("against the eager model", cases())

    def differences(self) -> Iterator[CheckResult]:
        """Compare the work of forces along short random paths, and of the virial along random strains, with energies."""
        rng = np.random.default_rng(19)
        step, tolerance = self.tolerances.step, self.tolerances.difference
        forces = _Worst("forces against differences of the energy", tolerance)
        stress = _Worst("stress against differences of the energy", tolerance)
        for name, structure in list(self.systems.items())[: 1 if self.quick else 4]:
            for _ in range(1 if self.quick else 2):
                path = rng.normal(size=structure.positions.shape) * step
                forces.add(self._force_error(structure, path), name)
            if structure.pbc.all():
                stress.add(self._stress_error(structure, rng.normal(size=(3, 3)) * step / 3), name)
        yield forces.result()
        yield stress.result()

    def _force_error(self, structure: Structure, path: np.ndarray) -> float:
        def slope(t: float) -> tuple[float, float]:
            graph = build_graph(displaced(structure, t * path), self.cutoffs)
            forces = forces_from_gradient(graph, self.evaluate(graph)[1]).numpy()
            # slope for independent random forces of this size
            return -(forces * path).sum(), np.linalg.norm(forces) * np.linalg.norm(path) / np.sqrt(path.size)

        return _integral_error(slope, self.binding_energy(displaced(structure, path)) - self.binding_energy(structure))

    def _stress_error(self, structure: Structure, strain: np.ndarray) -> float:
        def slope(t: float) -> tuple[float, float]:
            graph = build_graph(strained(structure, t * strain), self.cutoffs)
            virial = virial_from_gradient(graph, self.evaluate(graph)[1])[0].numpy()
            rate = np.linalg.solve(np.eye(3) + t * strain, strain)
            return -(virial * rate).sum(), np.linalg.norm(virial) * np.linalg.norm(rate) / 3

        return _integral_error(slope, self.binding_energy(strained(structure, strain)) - self.binding_energy(structure))

    def padding(self) -> list[CheckResult]:
        """Phantom atoms and edges, which engines add, do not change results, and have zero energy and gradient."""
        phantom = _Worst("gradient of phantom edges, eV/angstrom", 0.0)

        def cases():
            for name, graph in list(self.graphs.items())[: 1 if self.quick else None]:
                n, e = graph.num_nodes, graph.num_edges
                padded = pad_graph(graph, min_edges=e + 13, min_nodes=n + 3, cutoff=float(self.cutoffs.max()))
                energy, gradient = self.evaluate(padded)
                phantom.add(_largest(gradient[e:]), name)
                yield name, graph, (energy[:n], gradient[:e]), self.values[name]

        return [*self.compare("with phantom atoms and edges", cases()), phantom.result()]

    def invariance(self) -> list[CheckResult]:
        rng = np.random.default_rng(20)
        several = {name: s for name, s in self.systems.items() if s.num_atoms > 1}

        def rotated(handedness: int):
            for name in several:
                q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
                q *= handedness * np.linalg.det(q)
                graph = turned(self.graphs[name], torch.from_numpy(q))
                energy, gradient = self.values[name]
                yield name, graph, self.evaluate(graph), (energy, gradient @ torch.from_numpy(q))

        def moved():
            for name, structure in several.items():
                moved = build_graph(translated(structure, rng.normal(size=3) * 5), self.cutoffs)
                energy, gradient = self.evaluate(moved)
                # compares forces, since the order of edges may change with the shifts
                forces = forces_from_gradient(moved, gradient)
                yield name, self.graphs[name], (energy, forces), self._energy_forces(name)

        def permuted():
            for name, structure in several.items():
                order = rng.permutation(structure.num_atoms)
                other = replace(structure, positions=structure.positions[order], types=structure.types[order])
                other = build_graph(other, self.cutoffs)
                energy, gradient = self.evaluate(other)
                back = torch.from_numpy(np.argsort(order))
                forces = forces_from_gradient(other, gradient)
                yield name, self.graphs[name], (energy[back], forces[back]), self._energy_forces(name)

        return [
            *self.compare("under rotation", rotated(1)),
            *self.compare("under reflection", rotated(-1)),
            *self.compare("and forces under translation", moved()),
            *self.compare("and forces under permutation", permuted()),
        ]

    def _energy_forces(self, name: str) -> tuple[Tensor, Tensor]:
        energy, gradient = self.values[name]
        return energy, forces_from_gradient(self.graphs[name], gradient)

    def size_consistency(self) -> list[CheckResult]:
        """Parts without an edge between them have the same results when they are evaluated at once and one by one."""
        parts = [name for name, s in self.systems.items() if 0 < s.num_atoms < 40]
        graph = batch_graphs([self.graphs[name] for name in parts])
        expected = tuple(torch.cat(v) for v in zip(*(self.values[name] for name in parts)))
        return self.compare("of distant parts", iter([("", graph, self.evaluate(graph), expected)]))

    def chunks(self) -> list[CheckResult]:
        """Strictly local models give the same results with some atoms as centres and the others as ghosts, as on several ranks."""
        if int(self.artifact.metadata["message_passing_layers"]):
            return []

        def cases():
            for name, graph in list(self.graphs.items())[:2]:
                energy, gradient = self.values[name]
                for first, count in ((0, 1), (3, graph.num_nodes - 5), (graph.num_nodes - 2, 2)):
                    chunk, edges = some_centres(graph, first, count)
                    yield name, chunk, self.evaluate(chunk), (energy[first : first + count], gradient[edges])

        return self.compare("of some of the atoms", cases())

    def smoothness(self) -> Iterator[CheckResult]:
        """An edge just inside its cutoff contributes almost nothing, so results are continuous when it vanishes."""
        graphs, leaving = crossing_pairs(self.cutoffs, _INSIDE)
        names = self.artifact.type_names
        energy = _Worst("energy as an atom crosses the cutoff", _LEAVING_ENERGY + self.tolerances.energy)
        gradient = _Worst("gradient as an atom crosses the cutoff", _LEAVING_GRADIENT + self.tolerances.gradient)
        inside = self.evaluate(batch_graphs(graphs))
        outside = self.evaluate(batch_graphs([without_edge(g, e) for g, e in zip(graphs, leaving)]))
        sizes = [g.num_edges for g in graphs]
        pieces = zip(
            graphs,
            leaving,
            inside[0].split([g.num_nodes for g in graphs]),
            inside[1].split(sizes),
            outside[0].split([g.num_nodes for g in graphs]),
            outside[1].split([n - 1 for n in sizes]),
        )
        for graph, edge, e_in, g_in, e_out, g_out in pieces:
            g_out = torch.cat([g_out[:edge], g_out.new_zeros(1, 3), g_out[edge:]])
            where = "{}-{}".format(*(names[t] for t in graph.node_types[:2].tolist()))
            for worst, error in zip((energy, gradient), self.errors(graph, (e_in, g_in), (e_out, g_out))):
                worst.add(error, where)
        yield energy.result()
        yield gradient.result()


def one_edge(cutoffs: np.ndarray) -> Graph:
    """A graph of two atoms of the first type and one edge, from the first to the second."""
    vector = torch.tensor([[0.3, 0.2, -0.35]], dtype=torch.float64) * cutoffs[0, 0]
    return Graph(vector, torch.tensor([[0], [1]]), torch.tensor([0, 1, 1]), torch.tensor([0, 0]))


def turned(graph: Graph, q: Tensor) -> Graph:
    """The graph with every edge vector transformed by the orthogonal matrix q: r -> r q."""
    return Graph(graph.edge_vectors @ q, graph.edge_index, graph.row_ptr, graph.node_types)


def _eager(model: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    energy, gradient = energy_and_gradient(model, *graph.to(device).tensors)
    return energy.cpu(), gradient.cpu()


def _integral_error(slope, difference: float) -> float:
    """|integral of the slope over [0, 1] - difference| relative to the size of the slope (Gauss-Legendre, 3 points)."""
    nodes, weights = np.polynomial.legendre.leggauss(3)
    values, sizes = zip(*(slope((1 + t) / 2) for t in nodes))
    size = float(np.mean(sizes))
    return abs(float(np.dot(weights, values)) / 2 - difference) / size if size > 0 else float("inf")


def _largest(values: Tensor) -> float:
    """Largest magnitude; NaN if one of the values is NaN, 0 if there are none."""
    return float(values.abs().max()) if values.numel() else 0.0
