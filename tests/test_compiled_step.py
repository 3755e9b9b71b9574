"""The compiled training step against the eager one, on batches of any size."""

import logging
from copy import deepcopy

import pytest
import torch

from nequip_md.kernels.triton.backend import TritonBackend
from nequip_md.model import with_dtype
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig, preset
from nequip_md.precision import matmul_precision
from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import collate, make_sample
from nequip_md.training.steps import compiled_step
from nequip_md.training.steps.compiled_step import (
    CheckedStep,
    CompiledStep,
    pad_batch,
    relative_difference,
    step_graph,
)
from nequip_md.training.steps.ema import AveragedModel
from nequip_md.training.steps.loss import divisors, label_counts
from nequip_md.training.steps.recorded_step import EDGES_OF_A_PHANTOM, RecordedStep, TalliedStep, padded_sizes
from nequip_md.training.steps.step import EagerStep, Tally, tensors_of, trained
from nequip_md.training.steps.update import RecordedUpdate, Update
from support.training_runs import MODEL, crystals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSS = LossConfig(energy=3.0, force=1.0, stress=20.0)


def batch_of(frames, config):
    return collate([make_sample(atoms, config) for atoms in frames]).to(DEVICE)


def mixed(config):
    """Crystals with all labels, a molecule without stress, a lone atom without forces."""
    frames = [*crystals(2, 4), *crystals(1, 5, periodic=False)]
    lone = crystals(1, 6)[0][:1]
    lone.pbc = False
    return batch_of([*frames, lone], config)


def models():
    narrow = {"num_features": [4, 3], "radial_mlp_width": 8, "cutoff": 1.8, "avg_num_neighbors": 12.0}
    return {
        "allegro": AllegroConfig(**{**MODEL, "num_layers": 2}),
        "nequip": preset("S", type_names=["Ar"], dtype="float64", **narrow),
    }


@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_it_is_the_eager_step(kind, tmp_path, monkeypatch):
    config = models()[kind]
    torch.manual_seed(0)
    model = build_model(config).to(DEVICE)
    compiled = CompiledStep(model, LOSS, with_stress=True, folder=tmp_path)
    eager = EagerStep(model, LOSS, with_stress=True)

    def assert_equal(batch, weights=(1.0, 1.0, 1.0)):
        counts = divisors(label_counts(batch), torch.tensor(weights, dtype=torch.float64, device=DEVICE))
        got, expected = compiled(batch, counts), eager(batch, counts)
        torch.testing.assert_close(got.loss, expected.loss, rtol=1e-12, atol=0)
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(
                getattr(got.prediction, name), getattr(expected.prediction, name), rtol=1e-11, atol=1e-12
            )
        assert relative_difference(got, expected) < 1e-12
        assert all(g.shape == w.shape and g.dtype == w.dtype for g, w in zip(got.gradients, model.parameters()))

    assert_equal(mixed(config))
    assert_equal(batch_of(crystals(1, 9), config))  # one frame: fewer than a compiled graph takes
    assert_equal(mixed(config))

    # weights are inputs, not constants
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert_equal(mixed(config))

    # weights of the loss that change come in by the counts, 0 as well
    assert_equal(mixed(config), (0.3, 0.0, 7.0))
    assert_equal(mixed(config), (0.0, 1e4, 0.0))

    # it is compiled once, again if its file is damaged, and again for another loss
    (path,) = tmp_path.glob("*.pt2")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with monkeypatch.context() as patched:
        patched.setattr(compiled_step, "_compiled", lambda *arguments: content)
        compiled = CompiledStep(model, LOSS, with_stress=True, folder=tmp_path)
    assert_equal(mixed(config))
    monkeypatch.setattr(compiled_step, "_compiled", lambda *arguments: pytest.fail("it is compiled again"))
    CompiledStep(model, LOSS, with_stress=True, folder=tmp_path)
    with pytest.raises(pytest.fail.Exception):
        CompiledStep(model, LossConfig(kind="mae"), with_stress=True, folder=tmp_path)


def test_padding_adds_exactly_nothing():
    config = models()["allegro"]
    torch.manual_seed(0)
    model = build_model(config).to(DEVICE)
    step = EagerStep(model, LOSS, with_stress=True)
    batch = mixed(config)
    padded = pad_batch(batch, frames=7, atoms=40, edges=2000, cutoff=1.8)
    assert (padded.graph.num_graphs, padded.graph.num_nodes, padded.graph.num_edges) == (7, 40, 2000)
    counts = label_counts(batch)
    assert torch.equal(counts, label_counts(padded))
    got, expected = step(padded, counts), step(batch, counts)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-14, atol=0)
    assert relative_difference(got, expected) < 1e-14
    torch.testing.assert_close(got.prediction.forces[: batch.graph.num_nodes], expected.prediction.forces)


def test_a_wrong_compiled_step_is_left(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    config = models()["allegro"]
    model = build_model(config).to(DEVICE)

    class Wrong(EagerStep):
        def __call__(self, batch, counts):
            result = super().__call__(batch, counts)
            result.gradients[0].mul_(1.5)
            return result

    monkeypatch.setattr(compiled_step, "CompiledStep", Wrong)
    step = CheckedStep(model, LOSS, with_stress=False)
    batch = mixed(config)
    expected = EagerStep(model, LOSS, with_stress=False)(batch, label_counts(batch))
    for _ in range(2):
        assert relative_difference(step(batch, label_counts(batch)), expected) < 1e-13
    assert "goes on without the compiled step: its gradient of the first batch is off by" in caplog.text


IN_TF32 = pytest.mark.skipif(
    DEVICE == "cpu", reason="a minute in the interpreter, in forms that the operators' table has"
)


@pytest.mark.parametrize(
    ("kind", "precision"), [("allegro", "fp32"), ("nequip", "fp32"), pytest.param("allegro", "tf32", marks=IN_TF32)]
)
def test_float32_in_the_kernels_of_a_gpu(kind, precision, tmp_path):
    """Compiled on a GPU, where there is one; else the same graph in Triton's interpreter."""
    narrow = {"num_features": [16, 8], "radial_mlp_width": 16, "cutoff": 1.8, "avg_num_neighbors": 12.0}
    wide = {"num_layers": 2, "num_scalar_features": 16, "num_tensor_features": 16, "allegro_mlp_width": 32}
    config = (
        AllegroConfig(**{**MODEL, **wide, "readout_mlp_depth": 1, "readout_mlp_width": 16, "dtype": "float32"})
        if kind == "allegro"
        else preset("S", type_names=["Ar"], **narrow)
    )
    torch.manual_seed(0)
    model = build_model(config).to(DEVICE)
    cells = 2 if DEVICE == "cuda" else 1  # the interpreter takes a second for ten edges
    batch = batch_of([*crystals(1, 4, cells=cells), *crystals(1, 5, cells=cells, periodic=False)], config)
    counts = label_counts(batch)
    if DEVICE == "cuda":
        with matmul_precision(precision):
            got = CompiledStep(model, LOSS, with_stress=True, folder=tmp_path)(batch, counts).gradients
    else:
        graph, _ = step_graph(model, LOSS, True, torch.device(DEVICE), TritonBackend(precision).for_training())
        split = [n for n in graph.graph.nodes if n.target == torch.ops.nequip_md.split_weights_triton.default]
        assert split and len({n.args[0] for n in split}) == len(split), "each matrix is split once"
        got = graph(*[w.detach() for w in trained(model)], *tensors_of(batch).values(), counts)[6:]
    exact = EagerStep(with_dtype(deepcopy(model), "float64").to(DEVICE), LOSS, with_stress=True)(
        batch, counts
    ).gradients
    rounded = EagerStep(model, LOSS, with_stress=True)(batch, counts).gradients
    norm = sum(float(g.square().sum()) for g in exact) ** 0.5
    off, as_usual = (
        sum(float((a.double() - b).square().sum()) for a, b in zip(gradients, exact, strict=True)) ** 0.5 / norm
        for gradients in (got, rounded)
    )
    assert off <= (1e-2 if precision == "tf32" else max(5e-6, 5 * as_usual)), (off, as_usual)


def test_padded_sizes_are_few_and_not_much_larger():
    atoms, edges = zip(*[padded_sizes(8, n, 31 * n + n % 7)[1:] for n in range(1, 3000)])
    assert len(set(edges)) < 100 and len(set(zip(atoms, edges))) < 250
    for n, (a, e) in enumerate(zip(atoms, edges), start=1):
        count = 31 * n + n % 7
        assert (
            0 <= e - count <= max(8, count / 8)
            and (e - count) / EDGES_OF_A_PHANTOM <= a - n <= max(8, n / 8) + e / 500 + 2
        )


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs are recorded on a GPU")
@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_recorded_steps_and_updates_are_the_eager_ones(kind, tmp_path):
    """Over batches of several sizes that come again: weights, average, totals; with clipping and learning rates that change."""
    config = models()[kind]
    torch.manual_seed(0)
    model = build_model(config).to(DEVICE)
    runs = []
    for recorded in (False, True):
        own = deepcopy(model)
        tally, average = Tally(), AveragedModel(own, 0.9)
        # eps keeps weights still whose gradient is rounding alone
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, eps=1e-3, fused=True, capturable=True)
        update = Update(list(own.parameters()), optimizer, 0.5, average, own)
        if recorded:
            step = RecordedStep(CompiledStep(own, LOSS, with_stress=True, folder=tmp_path), tally)
            update = RecordedUpdate(update)
        else:
            step = TalliedStep(EagerStep(own, LOSS, with_stress=True), tally)
        for k in range(9):
            batch = mixed(config) if k % 3 else batch_of(crystals(1 + k % 2, 20 + k), config)
            for weight, gradient in zip(own.parameters(), step(batch, label_counts(batch)), strict=True):
                weight.grad = gradient
            average.before_step(k + 1)
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + k)
            update()
        runs.append([tally.totals, *own.parameters(), *average.parameters()])
    for got, want in zip(*reversed(runs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
