"""Losses, averages, schedules, and whole training runs on small crystals of an analytic potential."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from torch import nn

from nequip_md import checkpoint
from nequip_md.graph import Structure, build_graph
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig
from nequip_md.model.potential import energy_and_gradient
from nequip_md.training.callbacks import BestModel
from nequip_md.training.config import CosineSchedule, LossConfig, PlateauSchedule, StopConfig
from nequip_md.training.data.samples import collate, make_sample
from nequip_md.training.evaluation.metrics import ErrorMetrics, ForceErrorByType, weighted_loss
from nequip_md.training.steps.ema import AveragedModel
from nequip_md.training.steps.loss import Error, Prediction, errors, label_counts, loss, predict
from nequip_md.training.steps.schedule import Clock, make_schedule
from support.training_runs import MODEL, assert_same_end, crystals, run, write_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def batch_of(frames, **options):
    return collate([make_sample(a, AllegroConfig(**{**MODEL, **options})) for a in frames])


def test_the_loss_agrees_with_numpy_and_skips_missing_labels():
    torch.manual_seed(0)
    model = build_model(AllegroConfig(**MODEL))
    frames = crystals(3, 3)
    frames[2] = frames[2][:5]  # another number of atoms, no labels yet
    frames[2].calc = LennardJones(rc=1.8)
    frames[2].get_potential_energy()
    frames[2].calc.results = {"energy": 1.5}
    batch = batch_of(frames)
    prediction = predict(model, batch, with_stress=True)
    value = loss(errors(prediction, batch), LossConfig(energy=2.0, force=3.0, stress=5.0), label_counts(batch)).item()

    energy, forces, stress, start = [], [], [], 0
    for k, atoms in enumerate(frames):
        results, end = atoms.calc.results, start + len(atoms)
        energy.append((prediction.energy[k].item() - results["energy"]) / len(atoms))
        if "forces" in results:
            forces.append(prediction.forces[start:end].numpy() - results["forces"])
            stress.append(prediction.stress[k].numpy() - atoms.get_stress(voigt=False))
        start = end
    oracle = 2 * np.mean(np.square(energy)) + 3 * np.mean(np.square(forces)) + 5 * np.mean(np.square(stress))
    assert value == pytest.approx(oracle, rel=1e-12)

    metrics = ErrorMetrics(LossConfig(), with_stress=True)
    metrics.update(errors(prediction, batch))
    by_type = ForceErrorByType(["Ar"])
    by_type.update(errors(prediction, batch)["force"], batch.graph.node_types)
    assert by_type.compute()["rmse_by_type"] == {"Ar": pytest.approx(np.sqrt(np.mean(np.square(forces))), rel=1e-12)}
    found = metrics.compute()
    assert found["force_mae"] == pytest.approx(np.mean(np.abs(forces)), rel=1e-12)
    assert found["energy_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(energy))), rel=1e-12)
    assert weighted_loss(found, LossConfig(energy=2.0, force=3.0, stress=5.0)) == pytest.approx(oracle, rel=1e-12)


def test_force_errors_of_each_type_agree_with_numpy():
    """Over several batches, with unlabelled atoms, and a type that no frame holds."""
    rng = np.random.default_rng(0)
    metric = ForceErrorByType(["H", "C", "O"])
    values, types = [], []
    for count in (5, 9):
        label, prediction = rng.normal(size=(2, count, 3))
        kinds = rng.choice([0, 2], count)
        label[1] = np.nan
        error = Error.of(*map(torch.from_numpy, (prediction, label)), torch.ones(count))
        metric.update(error, torch.from_numpy(kinds))
        values.append((prediction - label)[~np.isnan(label[:, 0])])
        types.append(kinds[~np.isnan(label[:, 0])])
    values, types = np.concatenate(values), np.concatenate(types)
    found = metric.compute()
    for key, function in (("mae", np.abs), ("rmse", np.square)):
        means = {name: function(values[types == k]).mean() for k, name in ((0, "H"), (2, "O"))}
        expected = {name: mean if key == "mae" else np.sqrt(mean) for name, mean in means.items()}
        assert found[f"{key}_by_type"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["mae", "huber", "stratified_huber"])
def test_penalties_are_those_of_pytorch(kind):
    """Values of PyTorch's losses; for forces with strata, of one loss for each atom."""
    torch.manual_seed(0)
    label = torch.randn(40, 3, dtype=torch.float64) * torch.linspace(1, 300, 40, dtype=torch.float64)[:, None]
    prediction = label + 0.02 * torch.randn(40, 3, dtype=torch.float64)
    label[3, 1] = torch.nan
    batch = batch_of(crystals(5, 1))
    batch = replace(batch, forces=label)
    found = errors(Prediction(batch.energy + 0.01, prediction, None), batch)
    config = LossConfig(energy=2.0, force=3.0, kind=kind, huber_delta=0.015)

    def theirs(a, b, factor=1.0):
        if kind == "mae":
            return torch.nn.functional.l1_loss(a, b, reduction="sum")
        return torch.nn.functional.huber_loss(a, b, reduction="sum", delta=0.015 * factor)

    total = 0.0
    for k in range(40):
        known, norm = ~torch.isnan(label[k]), float(label[k].norm())
        factor = 1.0
        if kind == "stratified_huber" and known.all():
            factor = 0.1 if norm >= 300 else 0.4 if norm >= 200 else 0.7 if norm >= 100 else 1.0
        total += theirs(prediction[k][known], label[k][known], factor)
    energies = theirs((batch.energy + 0.01) / 8, batch.energy / 8)
    expected = 2 * energies / 5 + 3 * total / 119
    torch.testing.assert_close(loss(found, config, label_counts(batch)), expected, rtol=1e-12, atol=0)
    metrics = ErrorMetrics(config, with_stress=False)
    metrics.update(found)
    assert weighted_loss(metrics.compute(), config) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    "weights",
    [
        {"stress": 1.0},
        {"force": 1.0},
        {"energy": 1.0},
        {"force": 1.0, "kind": "mae"},
        {"energy": 1.0, "force": 1.0, "kind": "huber", "huber_delta": 0.5},
        {"force": 1.0, "kind": "stratified_huber", "huber_delta": 2.0},
    ],
)
def test_the_gradient_of_each_loss_agrees_with_finite_differences(weights):
    torch.manual_seed(1)
    model = build_model(AllegroConfig(**MODEL))
    # a molecule without volume and without stress in the same batch must not turn the gradient into NaN
    batch = batch_of([*crystals(2, 4), *crystals(1, 5, periodic=False)])
    weights = LossConfig(**{"energy": 0.0, "force": 0.0, **weights})

    def value(create_graph=False):
        return loss(
            errors(predict(model, batch, with_stress=True, create_graph=create_graph), batch),
            weights,
            label_counts(batch),
        )

    value(create_graph=True).backward()
    checked = 0
    for parameter in model.parameters():
        flat = parameter.detach().view(-1)
        k, step = flat.numel() // 2, 1e-5
        was = flat[k].item()
        flat[k] = was + step
        above = value().item()
        flat[k] = was - step
        below = value().item()
        flat[k] = was
        slope = (above - below) / (2 * step)
        assert parameter.grad.view(-1)[k].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
        checked += abs(slope) > 1e-3
    assert checked >= 5  # an all-zero gradient would have passed


def test_the_running_average_follows_its_definition():
    model = nn.Linear(3, 2)
    average = AveragedModel(model, decay=0.6)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.normal_()
        average.before_step(step)
        average.follow(model)
        decay = min(0.6, step / (step + 9))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.module.weight, expected)
    torch.testing.assert_close(average.module.bias, model.bias)
    assert not any(p.requires_grad for p in average.parameters())
    assert model.weight.requires_grad


def test_the_running_average_lies_on_the_device_of_the_model():
    # a recording of the step reads its weight there, and would take that of the CPU for a constant
    average = AveragedModel(nn.Linear(3, 2, device="meta"), decay=0.6)
    assert {t.device.type for t in (*average.parameters(), *average.buffers())} == {"meta"}


def optimizer_of(rate):
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=rate)


def test_the_plateau_schedule_waits_for_its_patience():
    optimizer = optimizer_of(1.0)
    schedule = make_schedule(PlateauSchedule(factor=0.5, patience=1, min_learning_rate=0.3), optimizer)
    rates = []
    for value in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0):
        schedule.after_epoch(value, 0.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def test_the_cosine_schedule_ends_at_its_final_fraction():
    optimizer = optimizer_of(2.0)
    schedule = make_schedule(CosineSchedule(final_fraction=0.1), optimizer)
    rates = []
    for progress in (0.0, 0.5, 1.0):
        schedule.after_epoch(1.0, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2.0, 2.0 * 0.55, 0.2])


@pytest.mark.parametrize(
    ("elapsed", "last", "limits", "progress", "stops"),
    [
        (50.0, 10.0, {"max_epochs": 10, "max_time": 100}, 0.5, False),
        (95.0, 10.0, {"max_epochs": 10, "max_time": 100}, 0.95, True),
        (50.0, 10.0, {"max_epochs": 5}, 0.6, False),
    ],
)
def test_the_clock_ends_before_the_limit(elapsed, last, limits, progress, stops):
    clock = Clock(StopConfig(**limits))
    clock.after_epoch(3)
    clock.elapsed, clock.epoch_seconds = elapsed, last
    assert clock.progress == pytest.approx(progress)
    assert clock.out_of_time is stops


def test_training_lowers_the_errors_and_the_checkpoint_is_what_was_reported(folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(folder, output, stop={"max_epochs": 25}, schedule={"patience": 10}) == 0
    text = capsys.readouterr().out
    assert "force component" in text and "stress component" in text and "model.energy_shifts" in text

    rows = np.genfromtxt(output / "logs/version_0/metrics.csv", delimiter=",", names=True, deletechars="")
    assert len(rows) == 25
    assert rows["validation/loss"][-1] < rows["validation/loss"][0] / 20
    assert list((output / "logs/version_0").glob("events.out.tfevents*"))

    report = json.loads((output / "report.json").read_text())
    info = checkpoint.read_info(output / "best.nqmd")
    assert info.training == report
    test = report["metrics"]["test"]
    assert report["metrics"]["validation"]["force_rmse"] < 0.2 * report["statistics"]["force_rms"]
    assert report["statistics"]["num_frames"] == 20

    # the errors again, from the checkpoint and the file alone
    model = checkpoint.load(output / "best.nqmd")
    assert model.config.energy_scales == pytest.approx(report["statistics"]["force_rms"])
    squares, energies = [], []
    for atoms in ase.io.read(folder / "test.extxyz", ":"):
        graph = build_graph(Structure.from_ase(atoms, ["Ar"]), model.config.cutoff_matrix())
        node_energy, gradient = energy_and_gradient(model, *graph.tensors)
        forces = np.zeros((8, 3))
        np.add.at(forces, graph.edge_index[0].numpy(), gradient.numpy())
        np.subtract.at(forces, graph.edge_index[1].numpy(), gradient.numpy())
        squares.append((forces - atoms.get_forces()) ** 2)
        energies.append(abs(node_energy.sum().item() - atoms.get_potential_energy()) / 8)
    assert test["force_rmse"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-10)
    assert test["energy_mae"] == pytest.approx(np.mean(energies), rel=1e-8)
    assert test["force_rmse_by_type"] == {"Ar": pytest.approx(test["force_rmse"], rel=1e-12)}
    assert "force component, Ar" in text


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stop = {"patience": 50}
    assert run(folder, whole, stop={"max_epochs": 5, **stop}) == 0
    assert run(folder, parts, stop={"max_epochs": 2, **stop}) == 0
    assert run(folder, parts, "--resume", stop={"max_epochs": 4, **stop}) == 0
    assert run(folder, parts, "--resume", stop={"max_epochs": 5, **stop}) == 0
    assert_same_end(whole, parts)
    state = torch.load(parts / "last.ckpt", weights_only=True)
    assert state["global_step"] == 25 and state["nequip_md"]["elapsed"] > 0


def test_the_saved_model_holds_the_averaged_weights(folder, tmp_path):
    assert run(folder, tmp_path / "run", stop={"max_epochs": 1}) == 0
    state = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["state_dict"]
    saved = checkpoint.load(tmp_path / "run/best.nqmd").state_dict()
    for name, value in saved.items():
        torch.testing.assert_close(value, state[f"average.module.{name}"], rtol=0, atol=0)
    moved = [name for name in saved if not torch.equal(saved[name], state[f"model.{name}"])]
    assert len(moved) > 5


def test_a_run_is_not_overwritten_or_resumed_by_mistake(folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(folder, output, "--resume") == 1
    assert "there is no run to resume" in capsys.readouterr().err
    assert run(folder, output, stop={"max_epochs": 1}) == 0
    assert run(folder, output) == 1
    assert "--resume to continue it, --overwrite to forget it" in capsys.readouterr().err
    assert run(folder, output, "--resume", optimizer={"learning_rate": 0.5}) == 1
    assert "optimizer.learning_rate is 0.5, but the run to resume has 0.02" in capsys.readouterr().err
    ase.io.write(folder / "more.extxyz", crystals(5, 9))
    assert run(folder, output, "--resume", data={"train": ["train.extxyz", "more.extxyz"]}) == 1
    assert "the training data has num_frames 25, that of the run to resume had 20" in capsys.readouterr().err
    assert run(folder, output, "--overwrite", stop={"max_epochs": 1}, optimizer={"ema_decay": None}) == 0


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"optimizer": {"learning_rate": 1e200, "gradient_clip": None, "ema_decay": None}}, "training has diverged"),
        ({"data": {"stress_key": "absent"}}, "loss.stress is 10.0, but no training frame has stress"),
        ({"device": "cuda"}, "has no CUDA device"),
        ({"data": {"train": "absent.extxyz"}}, "absent.extxyz does not exist"),
    ],
)
def test_a_run_that_cannot_go_on_says_why(folder, tmp_path, capsys, sections, expected):
    if "device" in sections and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run(folder, tmp_path / "run", **sections) == 1
    assert expected in capsys.readouterr().err


def test_training_stops_before_its_time_is_over(folder, tmp_path, capsys):
    limit, output = 1.5, tmp_path / "run"
    assert run(folder, output, stop={"max_epochs": 100000, "max_time": f"{limit} s"}, schedule={"kind": "cosine"}) == 0
    assert "stopping: the next epoch would end after max_time" in capsys.readouterr().out
    rows = np.genfromtxt(output / "logs/version_0/metrics.csv", delimiter=",", names=True)
    elapsed, rates = np.atleast_1d(rows["seconds"]), np.atleast_1d(rows["learning_rate"])
    expected_end = elapsed + np.diff(elapsed, prepend=0.0)  # of the epoch that would follow, which takes as long
    assert (expected_end[:-1] < limit * 1.001).all() and expected_end[-1] > limit * 0.999
    cosine = 0.01 + 0.99 * (1 + np.cos(np.pi * np.minimum(elapsed / limit, 1))) / 2
    np.testing.assert_allclose(rates[1:], 0.02 * cosine[:-1], rtol=1e-4)
    assert rates[0] == pytest.approx(0.02)
    state = torch.load(output / "last.ckpt", weights_only=True)["nequip_md"]
    assert state["elapsed"] == pytest.approx(elapsed[-1], rel=1e-6)


def test_the_best_loss_is_remembered_over_a_resume(tmp_path):
    best, again = BestModel(tmp_path / "a.nqmd"), BestModel(tmp_path / "b.nqmd")
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, current_epoch=0)
    module = SimpleNamespace(
        validation_loss=2.0,
        validation_errors={},
        record={},
        evaluated=build_model(AllegroConfig(**MODEL)),
        config=SimpleNamespace(loss=LossConfig()),
    )
    best.on_validation_end(trainer, module)
    assert best.path.exists()
    again.load_state_dict(best.state_dict())
    assert again.loss == math.inf  # the file was lost
    again.path.write_bytes(b"")
    again.load_state_dict(best.state_dict())
    again.on_validation_end(trainer, module)
    assert not again.path.read_bytes()
    module.validation_loss = 1.5
    again.on_validation_end(trainer, module)
    assert again.path.read_bytes()


def test_a_step_that_runs_out_of_memory_names_its_frames(folder, tmp_path, monkeypatch, capsys):
    def step(self, batch, counts):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr("nequip_md.training.steps.step.EagerStep.__call__", step)
    assert run(folder, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert re.search(
        r"a step of 4 frames with 32 atoms and \d+ edges \(frame \d+ of \S+train.extxyz, .* and 1 more\); set data.max_edges",
        message,
    )
