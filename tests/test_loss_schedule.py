"""Weights of the loss that change with the epochs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nequip_md import checkpoint
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig
from nequip_md.training.config import LossConfig
from nequip_md.training.steps.loss import divisors, label_counts
from nequip_md.training.steps.step import loss_and_gradient, trained
from support.training_runs import MODEL, assert_same_end, batch_of, crystals, run, write_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_divisors_stand_for_weights(kind):
    """A loss without weights whose numbers are divided by them has the value and the gradient of the loss with weights."""
    torch.manual_seed(0)
    model = build_model(AllegroConfig(**MODEL))
    batch = batch_of(crystals(3, 3))
    counts = label_counts(replace(batch, energy=batch.energy * torch.nan))  # no energy at all
    for weights in ((2.0, 3.0, 5.0), (0.01, 3.0, 0.0), (0.0, 1e6, 0.0)):
        config = LossConfig(**dict(zip(("energy", "force", "stress"), weights)), kind=kind)
        step = LossConfig(energy=1, force=1, stress=1, kind=kind)
        expected = loss_and_gradient(model, trained(model), batch, counts, config, True)
        found = loss_and_gradient(
            model, trained(model), batch, divisors(counts, torch.tensor(weights, dtype=torch.float64)), step, True
        )
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-13, atol=0)
        torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-9, atol=1e-12)


def table(output):
    return np.genfromtxt(output / "logs/version_0/metrics.csv", delimiter=",", names=True, deletechars="")


def test_the_weights_of_the_loss_follow_their_schedule(folder, tmp_path):
    """The loss of every epoch has its own weights, also with a quantity that has none at first; resumed as well."""
    changes = [{"epoch": 3, "energy": 100.0, "force": 0.5}, {"epoch": 5, "stress": 20.0}]
    loss = {"energy": 1.0, "force": 1.0, "stress": 0.0, "schedule": changes}
    options = {"loss": loss, "optimizer": {"ema_decay": None}, "schedule": {"kind": "constant"}}
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    assert run(folder, whole, stop={"max_epochs": 6}, **options) == 0
    rows, weights = table(whole), {1: (1, 1, 0), 3: (100, 0.5, 0), 5: (100, 0.5, 20)}
    for epoch in range(1, 7):
        row, (energy, force, stress) = rows[epoch - 1], weights[epoch - (epoch + 1) % 2]
        for data in ("train", "validation"):
            expected = energy * row[f"{data}/energy_rmse"] ** 2 + force * row[f"{data}/force_rmse"] ** 2
            expected += stress * row[f"{data}/stress_rmse"] ** 2
            assert row[f"{data}/loss"] == pytest.approx(expected, rel=1e-6)
    # steps take the weights: the same until epoch 2, and others from then on
    assert run(folder, plain, stop={"max_epochs": 3}, **{**options, "loss": {**loss, "schedule": changes[1:]}}) == 0
    first, second = rows["validation/force_rmse"][:3], table(plain)["validation/force_rmse"]
    assert (first[:2] == second[:2]).all() and first[2] != second[2]
    for epochs in (2, 3, 6):
        assert run(folder, parts, *["--resume"] * (epochs > 2), stop={"max_epochs": epochs}, **options) == 0
    assert_same_end(whole, parts)


def test_the_best_model_and_the_patience_are_counted_anew_where_weights_change(folder, tmp_path, capsys):
    """Weights 1000 times as large make all later losses worse than the first ones."""
    loss = {"energy": 0.001, "force": 0.001, "stress": 0.0, "schedule": [{"epoch": 4, "energy": 1.0, "force": 1.0}]}
    options = {"loss": loss, "optimizer": {"learning_rate": 1e-3}}
    schedule = {"kind": "plateau", "patience": 0, "factor": 0.5}
    assert run(folder, tmp_path / "a", stop={"max_epochs": 6, "patience": 1}, schedule=schedule, **options) == 0
    rows = table(tmp_path / "a")
    assert len(rows) == 6 and rows["validation/loss"][3:].min() > 10 * rows["validation/loss"][:3].max()
    line = "weights of the loss from epoch 4 on: energy 1, force 1, stress 0; the best model is looked for anew"
    assert capsys.readouterr().out.count(line) == 1
    best = checkpoint.read_info(tmp_path / "a/best.nqmd").training["epoch"]
    assert best == 4 + np.argmin(rows["validation/loss"][3:])
    np.testing.assert_allclose(
        rows["learning_rate"], 1e-3, rtol=1e-6
    )  # no epoch was worse than one with the same weights


def test_a_quantity_of_a_later_epoch_needs_labels_too(folder, tmp_path, capsys):
    loss = {"stress": 0.0, "schedule": [{"epoch": 9, "stress": 7.0}]}
    assert run(folder, tmp_path / "run", data={"stress_key": "absent"}, loss=loss) == 1
    assert "loss.stress is 7.0, but no training frame has stress" in capsys.readouterr().err
