"""Runs that repeat to the last digit."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nequip_md.kernels.triton.backend import TritonBackend
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig
from nequip_md.ops import references
from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import collate, make_sample
from nequip_md.training.determinism import deterministic
from nequip_md.training.steps.compiled_step import CompiledStep, is_compiled, relative_difference
from nequip_md.training.steps.loss import label_counts
from nequip_md.training.steps.step import EagerStep
from support.training_runs import MODEL, assert_identical, assert_same_end, crystals, run, write_config, write_data

NEQUIP = {
    "kind": "nequip",
    "type_names": ["Ar"],
    "cutoff": 1.8,
    "num_layers": 2,
    "num_features": 16,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_other_algorithms_are_errors_within_the_block_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    values, where = torch.zeros(4), torch.tensor([1, 1])
    with deterministic(False):
        values.put_(where, torch.ones(2))
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            values.put_(where, torch.ones(2))
    values.put_(where, torch.ones(2))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(ValueError), deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        raise ValueError
    assert not torch.are_deterministic_algorithms_enabled()


def test_two_runs_of_a_file_are_equal_to_the_last_digit(folder, tmp_path):
    """In processes of their own, on several threads, in single precision."""
    for name in ("a", "b"):
        options = {"model": {"dtype": "float32"}, "deterministic": True, "data": {"batch_size": 6}}
        path = write_config(folder, tmp_path / name, **options)
        command = [sys.executable, "-m", "nequip_md.training.cli", path, "--output", tmp_path / name]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "3",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONHASHSEED": "1" if name == "a" else "2",
        }
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    tables = [(tmp_path / name / "logs/version_0/metrics.csv").read_text().splitlines() for name in ("a", "b")]
    time = tables[0][0].split(",").index("seconds")
    rows = [[[v for k, v in enumerate(line.split(",")) if k != time] for line in lines] for lines in tables]
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_a_run_takes_its_steps_in_that_mode(folder, tmp_path):
    modes = []
    hook = register_optimizer_step_post_hook(lambda *_: modes.append(torch.are_deterministic_algorithms_enabled()))
    try:
        assert run(folder, tmp_path / "yes", deterministic=True, compile="auto", stop={"max_epochs": 1}) == 0
        assert run(folder, tmp_path / "no", stop={"max_epochs": 1}) == 0
    finally:
        hook.remove()
    assert modes == [True] * 5 + [False] * 5


def test_a_compiled_step_repeats_its_digits(tmp_path):
    config = AllegroConfig(**{**MODEL, "dtype": "float32"})
    torch.manual_seed(0)
    model, loss = build_model(config), LossConfig(energy=3.0, force=1.0)
    batch = collate([make_sample(atoms, config) for atoms in crystals(6, 4)])
    counts = label_counts(batch)
    with deterministic(True):
        step = CompiledStep(model, loss, with_stress=False, folder=tmp_path)
        assert is_compiled(model, loss, with_stress=False, folder=tmp_path)
    assert not is_compiled(model, loss, with_stress=False, folder=tmp_path)  # others have code of their own
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [step(batch, counts) for _ in range(6)]
    finally:
        torch.set_num_threads(threads)
    assert relative_difference(first, EagerStep(model, loss, with_stress=False)(batch, counts)) < 1e-5
    assert all(torch.equal(a, b) for other in others for a, b in zip(first.gradients, other.gradients))
    # six runs may agree by chance; additions in any order are atomic
    (path,) = tmp_path.glob("*.pt2")
    with zipfile.ZipFile(path) as package:
        code = [package.read(name) for name in package.namelist() if name.endswith(".cpp")]
    assert len(code) == 2 and not any(b"atomic_add" in text for text in code)


def test_additions_in_any_order_are_left_out():
    operator = torch.ops.nequip_md.tensor_product_convolution_nodes.default
    backend = TritonBackend("fp32").for_training()
    assert operator in backend.unordered and operator in backend.decompositions()
    with deterministic(True):
        strict = TritonBackend("fp32").for_training()
    assert strict.decompositions()[operator] is references()[operator]
    assert backend.decompositions()[operator] is not references()[operator]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", ["no", "yes"])
@pytest.mark.parametrize("model", [{}, NEQUIP])
def test_two_runs_on_a_gpu_are_equal_to_the_last_digit(folder, tmp_path, compiled, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {
        "deterministic": True,
        "device": "cuda",
        "compile": compiled,
        "model": model or {"dtype": "float32"},
        "stop": {"max_epochs": 20},
    }
    for name in ("a", "b"):
        assert run(folder, tmp_path / name, **options) == 0
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True, map_location="cpu") for name in ("a", "b")]
    for key in ("state_dict", "optimizer_states"):
        assert_identical(states[0][key], states[1][key])
