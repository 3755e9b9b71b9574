"""The compiled training step against the eager one, on batches of any size."""

import logging

import pytest
import torch

from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig, preset
from nequip_md.training import compiled_step
from nequip_md.training.compiled_step import CheckedStep, CompiledStep, pad_batch, relative_difference
from nequip_md.training.config import LossConfig
from nequip_md.training.loss import divisors, label_counts
from nequip_md.training.samples import collate, make_sample
from nequip_md.training.step import EagerStep
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

    # it is compiled once, and again for another loss
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
        assert relative_difference(step(batch, label_counts(batch)), expected) == 0
    assert "goes on without the compiled step: its gradient of the first batch is off by" in caplog.text
