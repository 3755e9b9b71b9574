"""``nequip-md-export`` and the artifacts that it writes."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

import nequip_md
from nequip_md import NequIPMDError
from nequip_md.artifact import load_artifact, read_metadata
from nequip_md.artifact.metadata import cpu_instructions
from nequip_md.checkpoint import checkpoint_sha256, save
from nequip_md.export import artifact_metadata, cli, export_checkpoint, package, write_artifact
from nequip_md.graph import Graph, Structure, build_graph
from nequip_md.kernels import Backend
from nequip_md.lowering.trace import example_inputs, trace
from nequip_md.model import AllegroConfig, build_model, energy_and_gradient
from support.artifacts import with_metadata
from support.structures import dense_box, elongated_cell, single_atom, triclinic_crystal, water_box

SYSTEMS = {
    "water": water_box(3),
    "dense": dense_box(),
    "elongated": elongated_cell(),
    "triclinic": triclinic_crystal(),
    "atom": single_atom(),
}


SMALLEST = AllegroConfig(type_names=["H"], cutoff=3.0, num_layers=1, num_scalar_features=4, num_tensor_features=2)


@pytest.mark.parametrize("name, tolerance", [("allegro_fp64", 1e-12), ("allegro_fp32", 1e-5), ("nequip_fp64", 1e-12)])
def test_artifact_is_the_model(small_models, name, tolerance):
    checkpoint, path = small_models(name)
    model, artifact = nequip_md.load_checkpoint(checkpoint), load_artifact(path)
    for system, atoms in SYSTEMS.items():
        graph = build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs)
        energy, gradient = artifact(graph)
        expected_energy, expected_gradient = energy_and_gradient(model, *graph.tensors)
        assert energy.dtype == gradient.dtype == torch.float64
        assert energy.shape == (len(atoms),) and gradient.shape == (graph.num_edges, 3)
        scale = expected_gradient.abs().max() if graph.num_edges else 1.0
        assert scale > 1e-3
        torch.testing.assert_close(
            energy, expected_energy, rtol=tolerance, atol=tolerance, msg=lambda m: f"{system}: {m}"
        )
        torch.testing.assert_close(
            gradient, expected_gradient, rtol=0, atol=tolerance * float(scale), msg=lambda m: f"{system}: {m}"
        )


def test_results_do_not_depend_on_threads(small_models):
    artifact = load_artifact(small_models("allegro_fp64")[1])
    graph = build_graph(Structure.from_ase(SYSTEMS["water"], artifact.type_names), artifact.pair_cutoffs)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(artifact(graph))
        finally:
            torch.set_num_threads(1)
    for energy, gradient in results[1:]:
        torch.testing.assert_close(energy, results[0][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-12)


def test_metadata_says_what_was_exported(small_models):
    checkpoint, path = small_models("allegro_fp32")
    metadata = read_metadata(path)
    expected = {
        "format_version": "2",
        "kind": "allegro",
        "type_names": "H O",
        "cutoff": "4.0",
        "pair_cutoffs": "3.2 4.0 4.0 4.0",
        "model_dtype": "float32",
        "precision": "fp32",
        "device": "cpu",
        "compute_capability": "",
        "torch_version": torch.__version__.split("+")[0],
        "length_unit": "angstrom",
        "energy_unit": "eV",
        "cpu_instructions": " ".join(cpu_instructions()),
        "message_passing_layers": "0",
        "ghosts": "yes",
        "networks": "1",
        "feature_widths": "",
        "checkpoint_sha256": checkpoint_sha256(checkpoint),
        "nequip_md_version": nequip_md.__version__,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["config"])["num_tensor_features"] == 8
    assert json.loads(metadata["training"]) == {}
    nequip = read_metadata(small_models("nequip_fp64")[1])
    assert (nequip["kind"], nequip["message_passing_layers"], nequip["model_dtype"]) == ("nequip", "3", "float64")


def test_metadata_has_the_limits_of_the_training_data():
    statistics = {"closest_distances": {"O": {"H": 0.87, "O": 2.41}, "H": {"O": 0.87}}, "largest_force": 7.25}
    options = {"kind": "x", "type_names": ["H", "O"], "cutoff": 3.0}
    metadata = artifact_metadata(**options, training={"statistics": statistics})
    assert (metadata["closest_distances"], metadata["largest_force"]) == ("0.0 0.87 0.87 2.41", "7.25")
    for training in (None, {}, {"statistics": {"closest_distances": {}, "largest_force": None}}):
        assert not {"closest_distances", "largest_force"} & artifact_metadata(**options, training=training).keys()


def test_instructions_of_a_processor(tmp_path):
    """What compilers use of it, in the order of the alphabet; nothing where there is no such file."""
    (tmp_path / "x86").write_text(
        "processor : 0\nflags\t\t: fpu vme sse2 avx512f hypervisor fma bmi2\n\nflags : none\n"
    )
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd sve2 cpuid\n")
    assert cpu_instructions(tmp_path / "x86") == ["avx512f", "bmi2", "fma", "sse2"]
    assert cpu_instructions(tmp_path / "arm") == ["asimd", "fp", "sve2"]
    assert cpu_instructions(tmp_path / "absent") == []


def test_artifacts_without_a_list_of_instructions_load(small_models, tmp_path):
    """Those of earlier versions, and those made where there is no such list."""
    for value in (None, ""):
        assert load_artifact(
            with_metadata(small_models("allegro_fp32")[1], tmp_path / "other.pt2", cpu_instructions=value)
        )


REFUSED_BY_THE_LOADER = {
    "format": (
        {"format_version": "1"},
        "format version 1, this nequip-md reads 2; write it again with: nequip-md-export MODEL -o OUT.pt2",
    ),
    "committee": (
        {"networks": "3"},
        "a committee of 3 networks, and this nequip-md runs one: export each of them.*nequip-md-export MODEL",
    ),
    "no ghosts": ({"ghosts": None, "networks": None}, "lacks the metadata ghosts, networks; write it again"),
    "foreign": ({"format_version": None}, "not an artifact of nequip-md"),
    "torch": ({"torch_version": "2.5.1"}, "compiled with PyTorch 2.5.1, this is .*compile it again"),
    "processor": ({"cpu_instructions": "avx9000 sse"}, "on a processor with avx9000.*lacks; compile it here"),
    "cuda": (
        {"device": "cuda", "compute_capability": "9.0"},
        "compiled for CUDA, and PyTorch finds no CUDA device here.*--device cpu",
    ),
    "incomplete": ({"pair_cutoffs": None}, "lacks the metadata pair_cutoffs"),
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_LOADER)
def test_loader_refuses(small_models, tmp_path, case):
    if case == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    changes, message = REFUSED_BY_THE_LOADER[case]
    path = with_metadata(small_models("allegro_fp32")[1], tmp_path / "other.pt2", **changes)
    with pytest.raises(NequIPMDError, match=message):
        load_artifact(path)


def test_loader_refuses_what_is_no_artifact(tmp_path, small_models):
    with pytest.raises(NequIPMDError, match="no such file"):
        load_artifact(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("not a zip file")
    with pytest.raises(NequIPMDError, match="not a compiled model"):
        load_artifact(tmp_path / "text.pt2")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(small_models("allegro_fp32")[1].read_bytes()[:5000])
    with pytest.raises(NequIPMDError, match="is damaged"):
        load_artifact(cut)
    with pytest.raises(NequIPMDError, match="compiled for cpu and cannot run on cuda"):
        load_artifact(small_models("allegro_fp32")[1], "cuda")


def test_artifact_checks_its_inputs(small_models):
    artifact = load_artifact(small_models("nequip_fp64")[1])
    graph = build_graph(Structure.from_ase(SYSTEMS["dense"], artifact.type_names), artifact.pair_cutoffs)
    with pytest.raises(NequIPMDError, match=r"edge_vectors is torch.float32 .* needs torch.float64"):
        artifact(Graph(graph.edge_vectors.float(), *graph.tensors[1:]))
    with pytest.raises(NequIPMDError, match=r"edge_index is torch.int64 \[2, 3\]"):
        artifact(Graph(graph.edge_vectors, graph.edge_index[:, :3], *graph.tensors[2:]))
    with pytest.raises(
        NequIPMDError, match="3 layers, and this graph has 27 ghosts.*or evaluate a graph without ghosts"
    ):
        artifact(Graph(*graph.tensors[:3], torch.cat([graph.node_types, graph.node_types])))


REFUSED_BY_THE_COMMAND = {
    "no checkpoint": (["none.nqmd", "-o", "out.pt2"], "none.nqmd does not exist"),
    "no .pt2": (["{model}", "-o", "out.zip"], "must end in .pt2, not 'out.zip'"),
    "no folder": (["{model}", "-o", "nowhere/out.pt2"], "the folder nowhere does not exist; create it first"),
    "tf32 on cpu": (["{model}", "-o", "out.pt2", "--precision", "tf32"], "use --device cuda, or fp32 on the CPU"),
    "no cuda": (
        ["{model}", "-o", "out.pt2", "--device", "cuda"],
        "this one has none that PyTorch can use; export there, or use --device cpu",
    ),
    "an artifact": (["{artifact}", "-o", "out.pt2"], "pt2"),
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_COMMAND)
def test_command_refuses(small_models, tmp_path, monkeypatch, capfd, case):
    """One line and status 1; test_commands.py has the same of the program in a process of its own."""
    if case == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.chdir(tmp_path)
    checkpoint, artifact = small_models("allegro_fp32")
    arguments, message = REFUSED_BY_THE_COMMAND[case]
    capfd.readouterr()
    assert cli.main([a.format(model=checkpoint, artifact=artifact) for a in arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ") and message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


REFUSED_BEFORE_COMPILATION = {
    "folder": ("", "is a folder; give the file to write, such as .*/model.pt2"),
    "long name": (f"{300 * 'x'}.pt2", "cannot write .*xxx.pt2: File name too long"),
    "itself": ("itself.pt2", "itself.pt2 is the checkpoint itself; give the artifact another name"),
    "pipe": ("pipe.pt2", "pipe.pt2 is a device or pipe"),
    "read-only": ("/sys/out.pt2", "cannot write /sys/out.pt2: .*; choose a folder that you may write to"),
    "no compiler": (
        "no_compiler.pt2",
        "an export needs a C\\+\\+ compiler, and g\\+\\+ was not found .*apt install g\\+\\+",
    ),
    "wrong compiler": ("wrong_compiler.pt2", "and CXX is 'nothing', which cannot be run"),
    "not a number": (
        "nan.pt2",
        "weights that are infinite or not a number in fp32 .readout.weights.0.*take an earlier checkpoint",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BEFORE_COMPILATION)
def test_refused_before_compilation(tmp_path, monkeypatch, case):
    output, message = REFUSED_BEFORE_COMPILATION[case]
    model = build_model(SMALLEST)
    if case == "not a number":
        model.readout.weights[0].data[0] = torch.nan
    checkpoint = tmp_path / "model.nqmd"
    save(checkpoint, model)
    os.mkfifo(tmp_path / "pipe.pt2")
    (tmp_path / "itself.pt2").symlink_to("model.nqmd")
    before = sorted(tmp_path.iterdir())
    monkeypatch.delenv("CXX", raising=False)
    if case == "wrong compiler":
        monkeypatch.setenv("CXX", "nothing")
    monkeypatch.setattr(package, "compile_model", None)
    with torch._inductor.config.patch({"cpp.cxx": (None, "nothing")} if "compiler" in case else {}):
        with pytest.raises(NequIPMDError, match=message):
            export_checkpoint(checkpoint, tmp_path / output, device="cpu", precision="fp32")
    assert sorted(tmp_path.iterdir()) == before


def test_an_artifact_that_differs_replaces_nothing(small_models, tmp_path, monkeypatch):
    """The check after compilation is real, and comes before the file is replaced."""
    original, artifact = small_models("allegro_fp32")
    model = nequip_md.load_checkpoint(original)
    with torch.no_grad():
        model.readout.weights[0].mul_(1.01)
    checkpoint = tmp_path / "model.nqmd"
    save(checkpoint, model)

    # code that was compiled from the other weights
    monkeypatch.setattr(package, "compile_model", lambda *arguments: (memoryview(artifact.read_bytes()), []))
    output = tmp_path / "out.pt2"
    output.write_text("a good one")
    with pytest.raises(NequIPMDError, match="differs from the checkpoint .*out.pt2 was not written"):
        export_checkpoint(checkpoint, output, device="cpu", precision="fp32")
    assert output.read_text() == "a good one" and sorted(tmp_path.iterdir()) == [checkpoint, output]


class SizeBound(nn.Module):
    """A model that takes the number of atoms for a constant."""

    def forward(self, edge_vectors, edge_index, row_ptr, node_types):
        energy = torch.zeros(row_ptr.shape[0] - 1, dtype=torch.float64).index_add(
            0, edge_index[0], edge_vectors.square().sum(-1)
        )
        return energy * int(node_types.shape[0])


def test_specialisation_to_a_size_is_refused():
    with pytest.raises(NequIPMDError, match="traced at two sizes and the graphs differ"):
        trace(SizeBound(), 5.0, 2, device="cpu", backend=Backend())


def test_every_dimension_is_dynamic():
    """Nothing in the graph but E, N and N + G carries a size of the example; test_ghosts.py has the same of message passing."""
    config = AllegroConfig(
        type_names=["A", "B"],
        cutoff=4.0,
        l_max=3,
        num_layers=3,
        radial_embedding={"kind": "spline"},
        avg_num_neighbors={"A": 3.0, "B": 9.0},
        energy_shifts={"A": 1.0, "B": 2.0},
        dtype="float64",
    )
    torch.manual_seed(0)
    model = build_model(config)
    run = trace(model, 4.0, 2, device="cpu", backend=Backend()).module()
    for owned, ghosts, degree in ((2, 0, 2), (40, 7, 23), (5, 90, 3)):
        inputs = example_inputs(owned, ghosts, degree, 2, 4.0, seed=owned)
        for got, expected in zip(run(*inputs), energy_and_gradient(model, *inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_type_names_and_precisions_are_checked():
    with pytest.raises(NequIPMDError, match="type name 'H 2' is empty or contains white space"):
        artifact_metadata(kind="x", type_names=["H 2"], cutoff=3.0)
    with pytest.raises(NequIPMDError, match="precision 'half' is not known; choose one of fp64, fp32, tf32"):
        artifact_metadata(kind="x", type_names=["H"], cutoff=3.0, precision="half")
    with pytest.raises(NequIPMDError, match="device 'tpu' is not known"):
        write_artifact(nn.Identity(), "x.pt2", {}, device="tpu")
