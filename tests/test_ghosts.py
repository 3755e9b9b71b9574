"""Artifacts of message-passing models on graphs with ghosts, whose features somebody exchanges."""

from __future__ import annotations

import re
import threading
import zipfile

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nequip_md import NequIPMDError
from nequip_md.artifact import load_artifact
from nequip_md.checkpoint import save
from nequip_md.export import export_checkpoint
from nequip_md.graph import Graph, forces_from_gradient
from nequip_md.kernels import Backend
from nequip_md.lowering.trace import example_inputs, trace
from nequip_md.model import NequIPConfig, build_model, energy_and_gradient
from support.artifacts import with_metadata
from support.ranks import Communicator, split
from support.structures import triclinic_crystal, water_box

TOLERANCE = {"fp64": 1e-13, "fp32": 3e-6}
MODELS = [(2, "fp64"), (3, "fp64"), (2, "fp32")]
"""Layers and precision; in fp32, a third layer would repeat what the second does."""


def config(layers: int, precision: str) -> NequIPConfig:
    return NequIPConfig(
        type_names=["H", "O"],
        cutoff=3.6,
        l_max=1,
        num_layers=layers,
        num_features=8,
        radial_mlp_width=16,
        avg_num_neighbors={"H": 14.0, "O": 19.0},
        energy_scales=0.7,
        dtype="float64" if precision == "fp64" else "float32",
    )


@pytest.fixture(scope="session")
def nequip(made_once, small_models):
    """``nequip(layers, precision)``: path of an artifact."""

    def make(layers: int, precision: str):
        if (layers, precision) == (3, "fp64"):
            return small_models("nequip_fp64")[1]
        name = f"ghosts_{layers}_{precision}"

        def write(folder):
            folder.mkdir()
            torch.manual_seed(11)
            save(folder / "model.nqmd", build_model(config(layers, precision)))
            export_checkpoint(folder / "model.nqmd", folder / "model.pt2", device="cpu", precision=precision)

        return made_once(name, write) / "model.pt2"

    return make


def evaluate_on_ranks(path, ranks):
    """One thread for each rank: energies of all atoms, gradients of all edges, forces, and the exchanges of the first rank."""
    communicator = Communicator(ranks)
    results: list = [None] * len(ranks)

    def run(rank: int) -> None:
        try:
            artifact = load_artifact(path)
            artifact.set_exchange(communicator.exchange(rank))
            results[rank] = artifact(ranks[rank].graph)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    atoms, edges = (sum(len(part) for part in parts) for parts in zip(*((rank.atoms, rank.edges) for rank in ranks)))
    energies = torch.zeros(atoms, dtype=torch.float64)
    gradients, forces = (torch.zeros(count, 3, dtype=torch.float64) for count in (edges, atoms))
    for rank, result in zip(ranks, results, strict=True):
        if isinstance(result, BaseException):
            raise result
        energies[rank.atoms], gradients[rank.edges] = result
        rank.forces(result[1], forces)
    return energies, gradients, forces, communicator.calls


def three_molecules() -> Atoms:
    """Two that are close and one that is far from both; open, no cell."""
    molecules = molecule("H2O") + molecule("H2O") + molecule("H2O")
    molecules.positions[3:6] += [1.5, 2.0, 1.0]
    molecules.positions[6:9] += [60.0, 0.0, 0.0]
    molecules.rattle(0.05, seed=5)
    return molecules


def alone() -> Atoms:
    """One atom, whose neighbours are all its own images: smaller than what an artifact takes, so it is padded."""
    return Atoms("O", positions=[[0.1, 0.2, 0.3]], cell=[[2.3, 0.1, 0.0], [0.0, 2.4, 0.2], [0.3, 0.0, 2.6]], pbc=True)


STRUCTURES = {
    "images": (water_box(2), lambda n: [0] * n),
    "two ranks": (water_box(2), lambda n: [int(k < n // 3) for k in range(n)]),
    "three ranks": (triclinic_crystal(), lambda n: [k % 3 for k in range(n)]),
    "a rank of one atom": (triclinic_crystal(), lambda n: [0] + [1] * (n - 1)),
    "a rank without ghosts": (three_molecules(), lambda n: [k // 3 for k in range(n)]),
    "padded": (alone(), lambda n: [0]),
}


@pytest.mark.parametrize("layers, precision", MODELS)
@pytest.mark.parametrize("case", STRUCTURES)
def test_ranks_agree_with_one_process(nequip, layers, precision, case):
    path = nequip(layers, precision)
    artifact = load_artifact(path)
    structure, owners = STRUCTURES[case]
    whole, ranks = split(structure, artifact.type_names, artifact.pair_cutoffs, owners(len(structure)))
    without = sum(len(rank.ghost_atoms) == 0 for rank in ranks)
    assert without == (case == "a rank without ghosts")
    expected, expected_gradients = artifact(whole)
    scale = float(expected_gradients.abs().max())
    assert scale > 1e-3 and len(structure) == len(expected)
    energies, gradients, forces, calls = evaluate_on_ranks(path, ranks)
    # the first layer reads types, which a rank knows of its ghosts
    widths = [int(width) for width in artifact.metadata["feature_widths"].split()]
    assert len(widths) == layers - 1
    assert calls == [(False, width) for width in widths] + [(True, width) for width in reversed(widths)]
    tolerance = TOLERANCE[precision]
    torch.testing.assert_close(energies, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(
        forces, forces_from_gradient(whole, expected_gradients), rtol=0, atol=10 * tolerance * scale
    )


@pytest.fixture
def images(nequip):
    """An artifact, a rank that owns a whole box, and the function that exchanges between its atoms and their images."""
    artifact = load_artifact(nequip(2, "fp64"))
    structure = water_box(2)
    whole, (rank,) = split(structure, artifact.type_names, artifact.pair_cutoffs, [0] * len(structure))
    return artifact, whole, rank, Communicator([rank]).exchange(0)


def test_a_registered_function_is_called_without_ghosts_too(images):
    """Other ranks may wait for this one."""
    artifact, whole, rank, _ = images
    calls = []
    expected = artifact(whole)
    artifact.set_exchange(lambda features, owned, reduce: calls.append((features.shape[0] - owned, reduce)))
    for got, want in zip(artifact(whole), expected, strict=True):
        assert torch.equal(got, want)
    assert calls == [(0, False), (0, True)]
    assert len(rank.ghost_atoms) > 0


def test_ghosts_without_an_exchange_are_refused(images, capfd):
    artifact, _, rank, exchange = images
    message = r"2 layers, and this graph has \d+ ghosts, whose features nobody exchanges: call set_exchange first"
    with pytest.raises(NequIPMDError, match=message):
        artifact(rank.graph)
    artifact.set_exchange(exchange)
    artifact(rank.graph)
    artifact.set_exchange(None)
    with pytest.raises(NequIPMDError, match=message):
        artifact(rank.graph)
    # the code itself, as another engine would find it
    capfd.readouterr()
    with pytest.raises(RuntimeError):
        artifact._code(*rank.graph.tensors)
    assert "there are ghosts, and nobody exchanges their features" in capfd.readouterr().err


def test_an_artifact_may_take_no_ghosts(nequip, images, tmp_path):
    artifact = load_artifact(with_metadata(nequip(2, "fp64"), tmp_path / "other.pt2", ghosts="no"))
    _, whole, rank, exchange = images
    artifact.set_exchange(exchange)
    with pytest.raises(NequIPMDError, match=r"takes no ghosts, and this graph has \d+; evaluate a graph without"):
        artifact(rank.graph)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failure_of_the_exchange_is_an_error(images, fails_at):
    artifact, whole, rank, exchange = images
    calls = []

    def fail(features, owned, reduce):
        calls.append(reduce)
        if len(calls) == fails_at:
            raise ValueError("a cable is cut")
        exchange(features, owned, reduce)

    expected = artifact(whole)[0]
    artifact.set_exchange(fail)
    with pytest.raises(
        NequIPMDError, match=r"exchange of ghosts' features failed \(ValueError: a cable is cut\)"
    ) as caught:
        artifact(rank.graph)
    assert isinstance(caught.value.__cause__, ValueError) and len(calls) == fails_at
    # what comes after it is as if nothing had happened
    artifact.set_exchange(None)
    torch.testing.assert_close(artifact(whole)[0], expected, rtol=0, atol=0)
    artifact.set_exchange(exchange)
    torch.testing.assert_close(artifact(rank.graph)[0], expected, rtol=1e-12, atol=1e-12)


def test_an_interruption_of_the_exchange_stays_one(images):
    artifact, _, rank, _ = images

    def interrupt(features, owned, reduce):
        raise KeyboardInterrupt

    artifact.set_exchange(interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact(rank.graph)


def test_features_that_nobody_sent_are_not_numbers(images):
    artifact, _, rank, _ = images
    artifact.set_exchange(lambda features, owned, reduce: None)
    energy, _ = artifact(rank.graph)
    assert energy.isnan().any()


def test_models_that_exchange_nothing(small_models, images):
    """They take ghosts, and refuse a function that would never be called."""
    artifact = load_artifact(small_models("allegro_fp32")[1])
    with pytest.raises(NequIPMDError, match=r"exchanges no features of ghosts \(it has 0 message-passing layers\)"):
        artifact.set_exchange(lambda features, owned, reduce: None)
    *tensors, types = images[1].tensors
    energy, gradient = artifact(Graph(*tensors, types))
    more = artifact(Graph(*tensors, torch.cat([types, types])))
    assert torch.equal(more[0], energy) and torch.equal(more[1], gradient)


def test_features_are_exchanged_where_they_lie(nequip):
    """Compiled code hands over what it computed and reads what it handed over: no copies."""
    with zipfile.ZipFile(nequip(3, "fp64")) as archive:
        (code,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".wrapper.cpp"))
    calls = re.findall(r"aoti_torch_cpu_exchange_ghosts_\((\w+), \w+, ([01]), nullptr\)", code)
    assert [reduce for _, reduce in calls] == ["0", "0", "1", "1"]
    for buffer, reduce in calls:
        if reduce == "0":
            assert re.search(rf"aoti_torch_cpu_tensor_product_convolution\({buffer}, ", code)
        else:
            assert re.search(rf"aoti_torch_cpu_tensor_product_convolution_nodes\(.*, &{buffer}_handle\)", code)


def test_every_dimension_is_dynamic():
    """The graph of a message-passing model is traced with ghosts, and holds for any number of edges, owned atoms and nodes."""
    torch.manual_seed(0)
    model = build_model(config(2, "fp64").model_copy(update={"bessel_trainable": True}))
    run = trace(model, 3.6, 2, device="cpu", backend=Backend()).module()
    for owned, degree in ((6, 5), (2, 2), (40, 23), (5, 3)):
        inputs = example_inputs(owned, 0, degree, 2, 3.6, seed=owned)
        for got, expected in zip(run(*inputs), energy_and_gradient(model, *inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    # nobody exchanges features here
    inputs = example_inputs(6, 40, 5, 2, 3.6)
    for got, expected in zip(run(*inputs), energy_and_gradient(model, *inputs), strict=True):
        assert got.shape == expected.shape and torch.equal(got.isnan(), expected.isnan()) and got.isnan().any()
