"""Learning rates, frozen weights and kinds of optimizers, against PyTorch's used by hand and against their definition."""

import csv
import sys

import pytest
import torch
from torch import nn

from nequip_md import checkpoint
from nequip_md.errors import NequIPMDError
from nequip_md.model.build import build_model
from nequip_md.model.config import preset
from nequip_md.training.config import OptimizerConfig
from nequip_md.training.steps.ema import ScheduleFreeModel, averaged
from nequip_md.training.steps.optimizers import freeze, is_matrix, make_optimizer, parameter_groups, warmed_up
from support.training_runs import assert_same_end, run, write_data


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_groups_move_by_their_own_rates_and_frozen_weights_stay():
    config = OptimizerConfig(learning_rate=0.1, freeze="1.bias", rate_factors={"*.bias": 0.5, "1.*": 0.01})
    model, start = freeze(network(), config), dict(network().named_parameters())
    optimizer = torch.optim.SGD(parameter_groups(model, config), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {"0.weight": 0.1, "0.bias": 0.05, "1.weight": 0.001, "1.bias": 0.0}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name].detach() - moved[name])


def test_warm_up_rises_linearly():
    optimizer = torch.optim.SGD(network().parameters(), lr=0.4)
    rates = []
    for step in range(6):
        with warmed_up(optimizer, step, 4):
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert optimizer.param_groups[0]["lr"] == 0.4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"freeze": ["2.*"]}, "optimizer.freeze: no weight has a name like '2.*'; the names are 0.weight"),
        ({"rate_factors": {"bias": 2.0}}, "optimizer.rate_factors: no weight has a name like 'bias'"),
        ({"freeze": "*"}, "names all weights"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(options, expected):
    with pytest.raises(NequIPMDError, match=expected.replace("*", r"\*").replace(".", r"\.")):
        freeze(network(), OptimizerConfig(**options))


def test_a_run_keeps_frozen_weights(tmp_path):
    folder = write_data(tmp_path)
    options = {"freeze": ["embedding.*"], "warmup_steps": 3, "ema_decay": None}
    assert run(folder, tmp_path / "out", optimizer=options, stop={"max_epochs": 1}) == 0
    assert run(folder, tmp_path / "free", optimizer={"ema_decay": None}, stop={"max_epochs": 1}) == 0
    frozen, free = (checkpoint.load(tmp_path / name / "best.nqmd").state_dict() for name in ("out", "free"))
    kept = [name for name in frozen if name.startswith("embedding.")]
    torch.manual_seed(5)
    start = build_model(checkpoint.read_info(tmp_path / "out" / "best.nqmd").config).state_dict()
    assert kept and all(torch.equal(frozen[name], start[name]) for name in kept)
    assert not any(torch.equal(free[name], start[name]) for name in kept)


class Layers(nn.Module):
    """Two matrices with names as in the models, and weights that are none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Module()
        self.mlp.weights = nn.ParameterList([nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5, 4))])
        self.embedding = nn.Parameter(torch.randn(2, 3))

    def gradients(self, step):
        generator = torch.Generator().manual_seed(step)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator)


def test_muon_takes_the_matrices_and_adamw_the_rest():
    config = OptimizerConfig(kind="muon", learning_rate=0.1, weight_decay=0.01, momentum=0.9, rate_factors={"*.1": 0.5})
    model, expected = Layers(), Layers()
    optimizer = make_optimizer(model, config)
    options = {"momentum": 0.9, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    first, second = expected.mlp.weights
    by_hand = [
        torch.optim.Muon([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.05}], **options),
        torch.optim.AdamW([expected.embedding], lr=0.1, weight_decay=0.01),
    ]
    for step in range(6):
        if step == 3:  # another optimizer goes on from the state
            state = optimizer.state_dict()
            optimizer = make_optimizer(model, config)
            optimizer.load_state_dict(state)
        for group in (group for o in (optimizer, *by_hand) for group in o.param_groups):
            group["lr"] *= 0.9
        for network, optimizers in ((model, [optimizer]), (expected, by_hand)):
            network.gradients(step)
            for o in optimizers:
                o.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)
    assert not torch.equal(model.embedding, Layers().embedding)


@pytest.mark.parametrize(
    ("name", "matrices", "others"),
    [
        ("small", ["readout.weights.0", "embedding.linear.weights.0"], ["readout.weights.1", "embedding.centre", "layers.0.path_weights"]),
        ("S", [], ["type_embedding"]),
    ],
)  # fmt: skip
def test_which_weights_of_a_model_are_matrices(name, matrices, others):
    model = build_model(preset(name, type_names=["H", "O"], cutoff=4.0))
    found = {n for n, p in model.named_parameters() if is_matrix(n, p)}
    assert found >= set(matrices) and not found & set(others)
    assert found and all(p.dim() == 2 for n, p in model.named_parameters() if n in found)


def test_only_matrices_or_none():
    """An optimizer without weights is refused by PyTorch, so there is none."""
    config = OptimizerConfig(kind="muon")
    assert [type(part).__name__ for part in make_optimizer(network(), config).parts] == ["AdamW"]
    matrices = Layers()
    matrices.embedding.requires_grad_(False)
    assert [type(part).__name__ for part in make_optimizer(matrices, config).parts] == ["Muon"]


def test_schedule_free_evaluates_the_average_of_its_definition():
    """Defazio et al., arXiv:2405.15682: z follows the gradient, x is its mean, the gradient is taken at y between them."""
    rate, decay, (beta1, beta2) = 0.1, 0.02, (0.8, 0.9)
    config = OptimizerConfig(kind="schedule_free", learning_rate=rate, weight_decay=decay, betas=(beta1, beta2))
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optimizer, average = make_optimizer(model, config), averaged(model, config)
    assert isinstance(average, ScheduleFreeModel)
    x = z = y = model.weight.detach().clone()
    square = torch.zeros_like(x)
    for t in range(1, 9):
        gradient = torch.sin(y + t)
        torch.testing.assert_close(model.weight.detach(), y, rtol=1e-12, atol=1e-14)
        model.weight.grad = torch.sin(model.weight.detach() + t)
        optimizer.step()
        square = beta2 * square + (1 - beta2) * gradient**2
        direction = gradient / ((square / (1 - beta2**t)).sqrt() + 1e-8) + decay * y
        z = z - rate * direction
        x = (1 - 1 / t) * x + z / t
        y = (1 - beta1) * z + beta1 * x
        before = model.weight.detach().clone()
        average.before_evaluation(model, optimizer)
        torch.testing.assert_close(average.module.weight, x, rtol=1e-11, atol=1e-13)
        assert torch.equal(model.weight, before)  # evaluation leaves no trace
    assert not torch.allclose(x, y, rtol=1e-3)


KINDS = {
    "adamw": {},
    "muon": {"optimizer": {"kind": "muon"}},
    "schedule_free": {"optimizer": {"kind": "schedule_free", "ema_decay": None, "warmup_steps": 5}, "schedule": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_lowers_the_loss_and_resumes_exactly(tmp_path, kind):
    folder, sections = write_data(tmp_path), KINDS[kind]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(folder, whole, stop={"max_epochs": 8}, **sections) == 0
    assert run(folder, parts, stop={"max_epochs": 5}, **sections) == 0
    assert run(folder, parts, "--resume", stop={"max_epochs": 8}, **sections) == 0
    assert_same_end(whole, parts)
    with open(whole / "logs/version_0/metrics.csv") as file:
        losses = [float(row["validation/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 8 and min(losses[-2:]) < 0.5 * losses[0]
    state = torch.load(whole / "last.ckpt", weights_only=True)
    has = {key for values in state["optimizer_states"][0]["state"].values() for key in values}
    assert {"adamw": "exp_avg", "muon": "momentum_buffer", "schedule_free": "z"}[kind] in has


def test_a_schedule_free_run_saves_the_averaged_weights(tmp_path):
    folder = write_data(tmp_path)
    assert run(folder, tmp_path / "out", stop={"max_epochs": 1}, **KINDS["schedule_free"]) == 0
    state = torch.load(tmp_path / "out/last.ckpt", weights_only=True)
    best = checkpoint.load(tmp_path / "out/best.nqmd")
    names = [name for name, _ in best.named_parameters()]
    assert len(names) == len(state["optimizer_states"][0]["state"])
    moved = 0
    for k, name in enumerate(names):
        y, z = state["state_dict"][f"model.{name}"], state["optimizer_states"][0]["state"][k]["z"]
        saved = best.state_dict()[name]
        torch.testing.assert_close(y, 0.1 * z + 0.9 * saved, rtol=1e-10, atol=1e-12)
        moved += not torch.allclose(saved, y, rtol=1e-4)
    assert moved > 5


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(
        NequIPMDError, match="optimizer.kind: schedule_free needs the package schedulefree: pip install"
    ):
        make_optimizer(network(), OptimizerConfig(kind="schedule_free"))
