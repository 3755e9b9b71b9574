"""Learning rates and frozen weights against PyTorch's optimizer, used by hand."""

import pytest
import torch
from torch import nn

from nequip_md import checkpoint
from nequip_md.errors import NequIPMDError
from nequip_md.training.config import OptimizerConfig
from nequip_md.training.optimizers import freeze, parameter_groups, warmed_up
from support.training_runs import run, write_data


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
    from nequip_md.model.build import build_model

    start = build_model(checkpoint.read_info(tmp_path / "out" / "best.nqmd").config).state_dict()
    assert kept and all(torch.equal(frozen[name], start[name]) for name in kept)
    assert not any(torch.equal(free[name], start[name]) for name in kept)
