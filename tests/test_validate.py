"""The validation of artifacts passes what is right and names what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nequip_md import NequIPMDError
from nequip_md.export.validate import CheckResult, validate_artifact
from nequip_md.export.validation_systems import validation_systems
from nequip_md.graph import Graph, build_graph
from nequip_md.model import AllegroConfig, NequIPConfig, build_model
from support.analytic import LennardJones
from support.eager import EagerArtifact, SmoothLennardJones

SMALL = {"num_scalar_features": 8, "num_tensor_features": 4, "avg_num_neighbors": 15.0, "cutoff": 4.5}
FIFTEEN = [f"type{k}" for k in range(15)]

MODELS = {
    "one type": AllegroConfig(type_names=["Si"], dtype="float64", l_max=1, **SMALL),
    "pair cutoffs, fp32": AllegroConfig(type_names=["H", "O"], pair_cutoffs={"H": {"H": 2.6, "O": 3.3}}, **SMALL),
    "large shifts": AllegroConfig(
        type_names=["H", "U"], energy_shifts={"H": -13.6, "U": -760000.0}, dtype="float64", **SMALL
    ),
    "fifteen types": AllegroConfig(type_names=FIFTEEN, l_max=1, num_layers=1, dtype="float64", **SMALL),
    "message passing": NequIPConfig(
        type_names=["H", "O"], cutoff=4.0, num_layers=2, num_features=6, avg_num_neighbors=15.0, dtype="float64"
    ),
}


def model_of(config) -> torch.nn.Module:
    torch.manual_seed(5)
    return build_model(config).eval()


def failures(results: list[CheckResult]) -> list[str]:
    return [f"{r.name}: {r.measured:.1e} > {r.tolerance:.1e}" for r in results if not r.passed]


@pytest.mark.parametrize("name", MODELS)
def test_models_pass(name):
    model = model_of(MODELS[name])
    assert failures(validate_artifact(EagerArtifact.of(model), model)) == []


def test_quick_is_part_of_the_whole():
    model = model_of(MODELS["one type"])
    quick, full = (validate_artifact(EagerArtifact.of(model), model, quick=q) for q in (True, False))
    kinds = [{r.name.split(" (")[0] for r in results} for results in (quick, full)]
    assert failures(quick) == [] and kinds[0] < kinds[1]
    assert any("eager model" in kind for kind in kinds[0])


def test_smooth_pair_potential_passes_and_a_truncated_one_does_not():
    assert failures(validate_artifact(EagerArtifact(SmoothLennardJones(), ["Ar"], [[8.0]]))) == []
    truncated = LennardJones([[0.0104]], [[3.4]], [[8.0]])
    failed = failures(validate_artifact(EagerArtifact(truncated, ["Ar"], [[8.0]])))
    assert any(f.startswith("gradient as an atom crosses the cutoff") for f in failed)


class Wrong(EagerArtifact):
    """An artifact with one fault."""

    def __init__(self, fault):
        super().__init__(SmoothLennardJones(epsilon=0.1, sigma=2.0, cutoff=4.5), ["H", "O"], [[4.5, 4.5], [4.5, 4.5]])
        self.fault = fault

    def __call__(self, graph: Graph):
        return self.fault(super().__call__, graph)


def scaled_gradient(factor):
    def fault(run, graph):
        energy, gradient = run(graph)
        return energy, gradient * factor

    return fault


def swapped_types(run, graph):
    return run(replace(graph, node_types=1 - graph.node_types))


def rough_energy(run, graph):
    """Rounding of energies as of half precision."""
    energy, gradient = run(graph)
    return energy.to(torch.float32).to(torch.float64), gradient


def preferred_direction(run, graph):
    """A term in x^2: right derivatives, and not invariant under rotation."""
    energy, gradient = run(graph)
    x = graph.edge_vectors[:, 0]
    inside = graph.edge_vectors.norm(dim=1) < 4.5
    energy = energy.index_add(0, graph.edge_index[0], 1e-4 * x.square() * inside)
    extra = torch.zeros_like(gradient)
    extra[:, 0] = 2e-4 * x * inside
    return energy, gradient + extra


def chiral(run, graph):
    """Mirror images differ, rotated ones do not: the volume spanned by an atom's first three edges."""
    energy, gradient = run(graph)
    extra = torch.zeros_like(energy)
    for i in range(graph.num_nodes):
        rows = graph.edge_vectors[graph.row_ptr[i] : graph.row_ptr[i + 1]][:3]
        if len(rows) == 3:
            extra[i] = 1e-4 * torch.linalg.det(rows)
    return energy + extra, gradient


def leak_between_atoms(run, graph):
    """The mean over the whole batch gets into every atom."""
    energy, gradient = run(graph)
    return energy + 1e-4 * energy.mean() if len(energy) else energy, gradient


def order_of_edges(run, graph):
    """The first edge of each atom counts more than the others."""
    energy, gradient = run(graph)
    has_edge = graph.row_ptr.diff() > 0
    first = graph.row_ptr[:-1][has_edge]
    return energy.index_add(0, has_edge.nonzero()[:, 0], 1e-5 * graph.edge_vectors[first].norm(dim=1)), gradient


def phantoms_count(run, graph):
    energy, gradient = run(graph)
    return energy, gradient + 1e-12


def not_a_number_alone(run, graph):
    energy, gradient = run(graph)
    return torch.where(graph.row_ptr.diff() == 0, torch.nan, energy), gradient


def not_a_number_when_dense(run, graph):
    energy, gradient = run(graph)
    return energy, gradient * (float("nan") if graph.num_edges > 1000 else 1.0)


def specialised(run, graph):
    """An index that was taken for a constant: atoms after the 17th get no energy."""
    energy, gradient = run(graph)
    return torch.cat([energy[:17], torch.zeros_like(energy[17:])]), gradient


def uncut(run, graph):
    """A term that does not vanish at the cutoff."""
    energy, gradient = run(graph)
    length = graph.edge_vectors.norm(dim=1, keepdim=True)
    inside = length < 4.5
    energy = energy.index_add(0, graph.edge_index[0], (1e-3 * length * inside)[:, 0])
    return energy, gradient + 1e-3 * graph.edge_vectors / length * inside


FAULTS = {
    "no gradient": (scaled_gradient(0.0), "largest gradient"),
    "gradient of wrong sign": (scaled_gradient(-1.0), "forces against differences"),
    "gradient a little off": (scaled_gradient(1.00001), "stress against differences"),
    "types swapped": (swapped_types, "energy against the eager model"),
    "energies rounded": (rough_energy, "energy against the eager model"),
    "a preferred direction": (preferred_direction, "gradient under rotation"),
    "chiral": (chiral, "energy under reflection"),
    "leak between atoms": (leak_between_atoms, "energy of distant parts"),
    "order of edges": (order_of_edges, "energy and forces under permutation"),
    "phantoms count": (phantoms_count, "gradient of phantom edges"),
    "NaN for an atom alone": (not_a_number_alone, "isolated atoms whose energy is not finite"),
    "NaN when dense": (not_a_number_when_dense, "numbers that are not finite"),
    "specialised to a size": (specialised, "energy of some of the atoms"),
    "not smooth": (uncut, "gradient as an atom crosses"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    fault, expected = FAULTS[name]
    wrong = Wrong(fault)
    failed = failures(validate_artifact(wrong, wrong.model))
    assert any(f.startswith(expected) or expected in f.split(":")[0] for f in failed), failed


def test_a_fault_in_the_artifact_alone_is_found_by_the_quick_checks():
    model = model_of(MODELS["pair cutoffs, fp32"])
    other = model_of(MODELS["pair cutoffs, fp32"])
    with torch.no_grad():
        next(p for p in other.parameters() if p.ndim == 2).mul_(1.01)
    failed = failures(validate_artifact(EagerArtifact.of(other), model, quick=True))
    assert any("against the eager model" in f for f in failed)


def test_unknown_precision():
    artifact = EagerArtifact(SmoothLennardJones(), ["Ar"], [[8.0]], precision="int8")
    with pytest.raises(NequIPMDError, match="precision 'int8'; those known are fp64, fp32, tf32"):
        validate_artifact(artifact)


def test_systems_differ_from_each_other_and_keep_atoms_apart():
    systems = validation_systems(num_types=3, cutoff=5.0, quick=False)
    sizes = [s.num_atoms for s in systems.values()]
    assert len(set(sizes) - {1}) == len([n for n in sizes if n != 1]) and {0, 1, 2} < set(sizes)
    for name, structure in systems.items():
        graph = build_graph(structure, 5.0)
        if graph.num_edges:
            assert graph.edge_vectors.norm(dim=1).min() > 0.2 * 5.0, name


@pytest.mark.parametrize("name", ["allegro_fp64", "allegro_fp32", "nequip_fp64"])
def test_compiled_models_pass(small_models, name):
    from nequip_md import load_artifact, load_checkpoint

    checkpoint, path = small_models(name)
    assert failures(validate_artifact(load_artifact(path), load_checkpoint(checkpoint))) == []


def test_command(small_models):
    """The program in a process of its own."""
    command = [sys.executable, "-m", "nequip_md.export.validate_cli", small_models("allegro_fp32")[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "stress against differences" in done.stdout and "checks passed" in done.stdout and "FAILED" not in done.stdout
    )


def test_command_reports_failures(small_models, monkeypatch, capsys):
    import nequip_md.export as module
    from nequip_md.export.validate_cli import main

    results = [CheckResult("something [H-O]", 0.5, 1e-3), CheckResult("another", 0.0, 0.0)]
    monkeypatch.setattr(module, "validate_artifact", lambda artifact: results)
    assert main([str(small_models("allegro_fp32")[1])]) == 1
    printed = capsys.readouterr().out
    assert "something [H-O]" in printed and "FAILED" in printed and "1 of 2 checks failed" in printed


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"PK not a package", "not a compiled model")]
)
def test_command_refuses_bad_files(tmp_path, capfd, content, message):
    from nequip_md.export.validate_cli import main

    path = tmp_path / "model.pt2"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 1
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
