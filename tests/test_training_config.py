"""A training file says what it may and is refused by name where it does not."""

import copy
from pathlib import Path

import pytest
import yaml

from nequip_md import checkpoint
from nequip_md.errors import NequIPMDError
from nequip_md.model import PRESETS, build_model, preset
from nequip_md.training.cli import main
from nequip_md.training.config import LossConfig, StopConfig, check_config, load_config
from nequip_md.training.steps.optimizers import freeze

MINIMAL = {
    "model": {"kind": "allegro", "type_names": ["H", "O"], "cutoff": 5.0},
    "data": {"train": "a.xyz", "validation_split": 20},
}

REFUSED = [
    # (section or None, what to set there, what the message must hold)
    (None, {"lr": 3}, ["lr: no such key", "optimizer", "schedule"]),
    (None, {"device": "tpu"}, ["device", "'auto', 'cpu' or 'cuda'", "'tpu'"]),
    (None, {"seed": -1}, ["seed", "greater than or equal to 0", "-1"]),
    (None, {"seed": 2**70}, ["seed", "less than 9223372036854775808", "1180591620717411303424"]),
    (None, {"data": None}, ["data"]),
    (None, {"schedule": {"kind": "step"}}, ["schedule: kind must be one of 'plateau', 'cosine', 'constant'"]),
    (None, {"schedule": {"factor": 0.5}}, ["schedule: kind must be one of 'plateau', 'cosine', 'constant'"]),
    (
        None,
        {"schedule": {"kind": "cosine", "factor": 0.5}},
        ["schedule.factor: no such key; allowed are kind, final_fraction"],
    ),
    (None, {"schedule": {"kind": "plateau", "factor": 2}}, ["schedule.factor", "less than 1"]),
    (None, {"optimizer": {"lr": 3}}, ["optimizer.lr: no such key", "learning_rate"]),
    (None, {"optimizer": {"learning_rate": "fast"}}, ["optimizer.learning_rate", "'fast'"]),
    (None, {"optimizer": {"betas": [0.9, 1.2]}}, ["optimizer.betas.1", "less than 1", "1.2"]),
    (None, {"optimizer": {"ema_decay": 1.0}}, ["optimizer.ema_decay", "less than 1"]),
    (None, {"optimizer": {"kind": "lion"}}, ["optimizer.kind", "'adamw', 'muon' or 'schedule_free'", "'lion'"]),
    (None, {"optimizer": {"kind": "muon", "momentum": 1}}, ["optimizer.momentum", "less than 1"]),
    (
        None,
        {"optimizer": {"kind": "schedule_free", "ema_decay": 0.99}},
        ["optimizer: kind: schedule_free averages the weights itself; leave ema_decay out"],
    ),
    (
        None,
        {"optimizer": {"kind": "schedule_free", "betas": [0, 0.9]}},
        ["optimizer", "a first value of betas above 0"],
    ),
    (
        None,
        {"optimizer": {"kind": "schedule_free"}, "schedule": {"kind": "plateau"}},
        ["schedule: optimizer.kind: schedule_free needs none; leave schedule out"],
    ),
    (None, {"loss": {"energy": 0, "force": 0}}, ["loss: at least one of energy, force and stress"]),
    (None, {"loss": {"force": -1}}, ["loss.force", "greater than or equal to 0"]),
    (
        None,
        {"loss": {"schedule": [{"epoch": 9}]}},
        ["loss.schedule.0: changes no weight; give energy, force or stress"],
    ),
    (None, {"loss": {"schedule": [{"epoch": 1, "force": 2}]}}, ["loss.schedule.0.epoch", "greater than or equal to 2"]),
    (
        None,
        {"loss": {"schedule": [{"epoch": 9, "forces": 2}]}},
        ["loss.schedule.0.forces: no such key", "energy, force"],
    ),
    (
        None,
        {"loss": {"schedule": [{"epoch": 9, "force": 2}, {"epoch": 9, "force": 3}]}},
        ["loss: the epochs of schedule must increase, but 9 follows 9"],
    ),
    (
        None,
        {"loss": {"schedule": [{"epoch": 5, "force": 0}, {"epoch": 9, "energy": 0}]}},
        ["loss: at least one of energy, force and stress", "schedule leaves none from epoch 9 on"],
    ),
    (
        None,
        {"deterministic": True, "schedule": {"kind": "cosine"}, "stop": {"max_time": "8 h"}},
        ["deterministic: with stop.max_time the cosine schedule follows the clock"],
    ),
    (None, {"stop": {"max_time": "7 minutes"}}, ["stop.max_time", "'7 minutes' is not a time", "7 min"]),
    (None, {"stop": {"max_epochs": 0}}, ["stop.max_epochs", "greater than 0"]),
    ("data", {"train": []}, ["data.train: names no file"]),
    ("data", {"train": 3}, ["data.train", "list", "3"]),
    ("data", {"split_seed": -1}, ["data.split_seed", "greater than or equal to 0", "-1"]),
    ("data", {"batch_size": 0}, ["data.batch_size", "greater than 0"]),
    ("data", {"validation": "v.xyz"}, ["data: give exactly one of validation (files) and validation_split"]),
    ("data", {"validation_split": None}, ["data: give exactly one of validation (files) and validation_split"]),
    ("data", {"test": "t.xyz", "test_split": 0.1}, ["data: give at most one of test (files) and test_split"]),
    ("data", {"validation_split": 2.5}, ["data.validation_split: is a fraction below 1 or a whole number of frames"]),
    ("data", {"keep_on_device": "yes please"}, ["data.keep_on_device", "'auto', True or False"]),
    ("model", {"kind": "mace"}, ["model.kind is 'mace'", "allegro, nequip"]),
    ("model", {"l_maxx": 2}, ["model.l_maxx: no such key", "l_max"]),
    ("model", {"l_max": 7}, ["model.l_max", "less than or equal to 3", "7"]),
    ("model", {"type_names": ["H", "H"]}, ["model", "a name twice"]),
    (
        "model",
        {"radial_embedding": {"kind": "fourier"}},
        ["model.radial_embedding: kind must be one of 'bessel', 'spline'"],
    ),
    (
        "model",
        {"radial_embedding": {"kind": "spline", "num_bessels": 8}},
        ["model.radial_embedding.num_bessels", "num_splines"],
    ),
    ("model", {"energy_scales": "rms"}, ["model.energy_scales is 'rms'", "auto, force_rms, force_rms_by_type"]),
    ("model", {"energy_shifts": {"H": -1.0}}, ["energy_shifts must name each of ['H', 'O'] once"]),
    ("data", {"energy_key": []}, ["data.energy_key: names no label"]),
    ("model", {"preset": "small"}, ["both preset and kind"]),
]


@pytest.mark.parametrize(
    ("section", "change", "expected"), REFUSED, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_a_bad_value_is_refused_by_name(section, change, expected):
    content = copy.deepcopy(MINIMAL)
    (content if section is None else content[section]).update(change)
    with pytest.raises(NequIPMDError) as error:
        check_config(content, Path("/"))
    for text in expected:
        assert text in str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_trained(name):
    content = {**MINIMAL, "model": {"preset": name, "type_names": ["H", "O"], "cutoff": 4.0}}
    assert check_config(content, Path("/")).potential() == preset(
        name, type_names=["H", "O"], cutoff=4.0, avg_num_neighbors=None, energy_scales=None, energy_shifts=None
    )
    content["model"]["wings"] = 2
    with pytest.raises(NequIPMDError, match="model.wings: no such key; allowed are type_names"):
        check_config(content, Path("/"))


@pytest.mark.parametrize("name", ["huge", 3])
def test_an_unknown_preset_lists_the_known_ones(name):
    content = {**MINIMAL, "model": {"preset": name, "type_names": ["H"]}}
    with pytest.raises(NequIPMDError, match="nano, tiny, small, medium, large, S, M, L, XL"):
        check_config(content, Path("/"))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("00:07:00", 420), ("90 s", 90), ("7 min", 420), ("1.5 h", 5400), ("1:02:03", 3723), (12, 12), (None, None)],
)
def test_times(written, seconds):
    config = check_config({**MINIMAL, "stop": {"max_time": written}}, Path("/"))
    assert config.stop.max_time == seconds


def test_an_unquoted_time_means_the_same_as_a_quoted_one(tmp_path):
    path = tmp_path / "train.yaml"
    for written in ("1:02:03", "'1:02:03'"):
        path.write_text(yaml.safe_dump(MINIMAL) + f"stop: {{max_time: {written}}}\n")
        assert load_config(path).stop.max_time == 3723


@pytest.mark.parametrize(("written", "read"), [("yes", "yes"), ("no", "no"), ("'no'", "no"), ("auto", "auto")])
def test_yes_and_no_need_no_quotes(tmp_path, written, read):
    path = tmp_path / "train.yaml"
    path.write_text(
        yaml.safe_dump(MINIMAL) + f"compile: {written}\ndeterministic: {'no' if read == 'yes' else 'yes'}\n"
    )
    if read == "yes":
        assert load_config(path).compile == "yes"
    else:
        assert load_config(path).compile == read and load_config(path).deterministic


def test_paths_start_at_the_folder_of_the_file(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "data": {"train": ["a.xyz", "/b.xyz"], "validation": "../v.xyz"}}))
    data = load_config(path).data
    assert data.train == [str(tmp_path.resolve() / "a.xyz"), "/b.xyz"]
    assert Path(data.validation[0]).resolve() == tmp_path.resolve().parent / "v.xyz"


@pytest.mark.parametrize("name", ["S", "M", "L", "XL"])
def test_a_preset_without_a_cutoff_asks_for_one(name):
    with pytest.raises(NequIPMDError, match=r"model\.cutoff: is required"):
        check_config({**MINIMAL, "model": {"preset": name, "type_names": ["H"]}}, Path("/"))


def test_presets_and_given_values_reach_the_model():
    content = {
        **MINIMAL,
        "model": {
            "preset": "medium",
            "type_names": ["H", "O"],
            "energy_shifts": {"H": 1.0, "O": 2.0},
            "energy_scales": None,
        },
    }
    config = check_config(content, Path("/"))
    asked = []
    potential = config.potential(lambda key, word: asked.append((key, word)) or 3.5)
    assert asked == [("avg_num_neighbors", "auto")]
    assert potential.l_max == 3 and potential.avg_num_neighbors == 3.5
    assert potential.energy_shifts == {"H": 1.0, "O": 2.0} and potential.energy_scales is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot read the training file"),
        ("a: [", "is not a YAML file"),
        ("- 1", "must hold keys and values"),
        ("x: 1", "x: no such key"),
        ("output: 2024-13-01", "is not a YAML file: month must be in 1..12"),
        ("stop: {max_epochs: 3}\nseed: 1\nstop: {max_time: 8 h}\n", "line 3: 'stop' is given again, first in line 1"),
        ("optimizer: {learning_rate: 1e-3, learning_rate: 5.0}", "line 1: 'learning_rate' is given again"),
        ("model:\n  cutoff: 5\n  radial_embedding: {kind: bessel, 'kind': spline}", "line 3: 'kind' is given again"),
    ],
)
def test_the_command_prints_one_message_and_fails(tmp_path, capsys, text, expected):
    path = tmp_path / "train.yaml"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 1
    captured = capsys.readouterr()
    assert expected in captured.err and str(path) in captured.err
    assert "Traceback" not in captured.err


def test_a_key_that_overrides_an_anchor_is_no_second_one(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "stop: {<<: &limits {max_epochs: 3, patience: 7}, max_epochs: 5}\n")
    assert load_config(path).stop == StopConfig(max_epochs=5, patience=7)


def test_schedule_free_needs_neither_an_average_nor_a_schedule():
    config = check_config({**MINIMAL, "optimizer": {"kind": "schedule_free"}}, Path("/"))
    assert config.optimizer.ema_decay is None and config.schedule.kind == "constant"
    again = check_config(config.model_dump(mode="json"), Path("/"))  # as a resume reads it
    assert again == config


def test_weights_of_a_loss_by_epoch():
    changes = [{"epoch": 5, "energy": 10.0}, {"epoch": 9, "force": 0.0}, {"epoch": 12, "energy": 10.0, "stress": 2.0}]
    loss = LossConfig(energy=1.0, force=3.0, kind="huber", schedule=changes)
    weights = {1: (1, 3, 0), 4: (1, 3, 0), 5: (10, 3, 0), 8: (10, 3, 0), 9: (10, 0, 0), 12: (10, 0, 2), 99: (10, 0, 2)}
    for epoch, expected in weights.items():
        at = loss.at(epoch)
        assert (at.energy, at.force, at.stress) == expected and at.kind == "huber" and not at.schedule
    assert [epoch for epoch in range(1, 20) if loss.changes_at(epoch)] == [5, 9, 12]
    assert loss.largest_weight("force") == 3 and loss.largest_weight("stress") == 2
    assert loss.without_weights() == LossConfig(energy=1, force=1, stress=1, kind="huber")
    assert not LossConfig(schedule=[{"epoch": 3, "energy": 1.0}]).changes_at(3)  # nothing is different


def test_the_demo_configuration_is_valid():
    path = Path(__file__).parents[1] / "examples/lammps/water/train.yaml"
    assert load_config(path).model["type_names"] == ["H", "O"]


RECIPES = Path(__file__).resolve().parents[1] / "examples" / "training"


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_the_recipes_are_valid(name, tmp_path):
    """Those that go on from a checkpoint find one where they look for it."""
    text = (RECIPES / name).read_text()
    assert text.startswith("# ") and f"#   nequip-md-train {name}" in text and "# Data: " in text and "Expect" in text
    (tmp_path / name).write_text(text)
    model = yaml.safe_load(text)["model"]
    if "checkpoint" in model:
        with pytest.raises(NequIPMDError, match=f"{model['checkpoint']} does not exist"):
            load_config(tmp_path / name)
        path = tmp_path / model["checkpoint"]
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, build_model(preset("nano", type_names=["H", "O"])))
    config = load_config(tmp_path / name)
    network = freeze(build_model(config.potential()), config.optimizer)  # patterns of weights fit
    assert all(p.requires_grad for p in network.parameters())


def test_the_recipes_of_spice_belong_together():
    first, second = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("spice", "spice_stage2"))
    assert second["model"]["checkpoint"] == f"{first['output']}/best.nqmd"
    assert first["data"] == second["data"]
    assert first["model"]["type_names"] == first["model"]["pair_potential"]["chemical_species"]


@pytest.mark.parametrize(("word", "value"), [("no", "no"), ("yes", "yes"), ("auto", "auto"), ("'no'", "no")])
def test_compile_takes_the_words_of_yaml(word, value, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"compile: {word}\nmodel: {{preset: small, type_names: [H]}}\ndata: {{train: a.xyz, validation_split: 0.1}}\n"
    )
    assert load_config(path).compile == value


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("tf32", "float32"), ("fp64", "float64")])
def test_precision_sets_the_dtype(precision, dtype):
    config = check_config({**MINIMAL, "precision": precision}, Path())
    assert config.potential().dtype == dtype
    other = {"float32": "float64", "float64": "float32"}[dtype]
    with pytest.raises(NequIPMDError, match=f"precision: {precision} is {dtype}, but model.dtype is {other}"):
        check_config({**MINIMAL, "precision": precision, "model": {**MINIMAL["model"], "dtype": other}}, Path())
