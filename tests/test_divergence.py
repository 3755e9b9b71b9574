"""A run that diverges says with which frames, and keeps them."""

import math
import re
from dataclasses import replace
from itertools import islice

import ase.io
import numpy as np
import pytest
import torch

from nequip_md.training.data.batches import Batches
from nequip_md.training.data.cli import main as convert
from nequip_md.training.divergence import FirstFailure
from nequip_md.training.steps.loss import Prediction
from nequip_md.training.steps.step import EagerStep
from support.training_runs import batch_of, crystals, run, write_config, write_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_divergence_names_the_frame_with_the_largest_force_and_keeps_the_batch(folder, tmp_path, capsys):
    frames = crystals(6, 8)
    frames[3].calc.results["forces"][2] = [0.0, 3e5, 4e5]
    del frames[1].calc.results["stress"]
    ase.io.write(folder / "outlier.extxyz", frames)
    data = {"train": "outlier.extxyz", "validation": "train.extxyz", "validation_split": None}
    options = {"data": data, "optimizer": {"learning_rate": 1e200, "ema_decay": None}}
    assert run(folder, tmp_path / "run", **options) == 1
    message = capsys.readouterr().err
    assert "training has diverged" in message
    assert re.search(
        r"the largest force of the training data, 5e\+05 eV/Å, is in frame 3 of \S*outlier.extxyz", message
    )
    named = re.search(r"first prediction that was not finite is of frame (\d) of \S*/outlier.extxyz", message)
    # the first step makes the weights what they are, the second one sees it
    assert f"batch 2 of the training data in this epoch was the first one, and its frames are in {tmp_path}" in message

    kept = ase.io.read(tmp_path / "run/diverged.extxyz", ":")
    taken = next(islice(Batches([8] * 6, [0] * 6, (4,), seed=5), 1, None))
    assert len(kept) == len(taken) == 2 and int(named[1]) in taken
    for atoms, k in zip(kept, taken):
        assert atoms.info["frame"].startswith(f"frame {k} of ") and atoms.info["frame"].endswith("outlier.extxyz")
        np.testing.assert_allclose(atoms.positions, frames[k].positions, atol=1e-7)
        np.testing.assert_allclose(atoms.get_forces(), frames[k].get_forces(), rtol=1e-6, atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(frames[k].get_potential_energy())
        assert ("stress" in atoms.calc.results) == (k != 1)
    # what is kept can be trained on, and is gone with the run
    again = {
        "data": {"train": str(tmp_path / "run/diverged.extxyz"), "validation": "test.extxyz", "validation_split": None}
    }
    assert run(folder, tmp_path / "again", **again) == 0
    assert run(folder, tmp_path / "run", "--overwrite") == 0
    assert not (tmp_path / "run/diverged.extxyz").exists()


def failures(prediction_of, loss, number=0):
    """A :class:`FirstFailure` that has seen good batches of 3 frames, and one that is not."""
    found, batch = FirstFailure(), replace(batch_of(crystals(3, 1)), index=torch.tensor([5, 2, 7]))
    good = Prediction(batch.energy, batch.forces, None)
    found.update(good, batch, 0, torch.tensor([1.0, 2.0]))
    assert found.find(torch.device("cpu")) == (None, None)
    found.update(prediction_of(batch), batch, number, torch.tensor([1.0, loss]))
    found.update(Prediction(batch.energy * torch.nan, batch.forces, None), batch, 9, torch.tensor(torch.nan))
    return found.find(torch.device("cpu"))


def test_the_first_batch_that_failed_is_found():
    def bad_forces(batch):
        forces = batch.forces.clone()
        forces[17, 1] = torch.inf  # atom 1 of the third frame
        return Prediction(batch.energy, forces, None)

    assert failures(bad_forces, math.nan, 4) == (4, 7)
    assert failures(lambda b: Prediction(b.energy / torch.tensor([1, 0, 1]), b.forces, None), math.inf, 4) == (4, 2)
    # an error whose square is too large
    assert failures(lambda b: Prediction(b.energy, b.forces, None), math.inf, 4) == (4, None)
    assert failures(lambda b: Prediction(b.energy, b.forces, None), 3.0, 4) == (9, 5)


def test_a_gradient_that_is_not_finite_belongs_to_its_own_batch(folder, tmp_path, capsys):
    """All predictions of that batch are finite: those of the next one are not."""
    steps = []

    def step(self, batch, counts):
        result = plain(self, batch, counts)
        steps.append(batch.index.tolist())
        if len(steps) == 3:
            result.gradients[0].view(-1)[0] = math.nan
        return result

    plain = EagerStep.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagerStep, "__call__", step)
        assert run(folder, tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert "batch 3 of the training data in this epoch was the first one" in message
    assert "prediction that was not finite" not in message
    names = [atoms.info["frame"] for atoms in ase.io.read(tmp_path / "run/diverged.extxyz", ":")]
    assert len(names) == 4 and len(steps) == 5
    training = np.sort(np.random.default_rng(0).permutation(24)[4:])  # without the frames of the validation
    assert [int(name.split()[1]) for name in names] == [training[k] for k in steps[2]]


def test_frames_of_a_store_are_named(folder, tmp_path, capsys):
    """A store has graphs, but no positions."""
    config, store = write_config(folder, tmp_path / "run"), tmp_path / "train.graphs"
    source = str(folder / "train.extxyz")
    assert convert(["convert", source, "-o", str(store), "--train-file", str(config)]) == 0
    options = {"data": {"train": str(store), "workers": 0}, "optimizer": {"learning_rate": 1e200, "ema_decay": None}}
    assert run(folder, tmp_path / "run", **options) == 1
    message = capsys.readouterr().err
    assert re.search(
        r"batch 2 of the training data in this epoch was the first one, with frame \d+ of \S+ .* and 1 more", message
    )
    assert not (tmp_path / "run/diverged.extxyz").exists()


def test_a_disk_without_room_is_said(folder, tmp_path, monkeypatch, capsys):
    def full(path, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nequip_md.training.divergence.write_atomically", full)
    assert run(folder, tmp_path / "run", optimizer={"learning_rate": 1e200, "ema_decay": None}) == 1
    message = capsys.readouterr().err
    assert "training has diverged" in message
    assert (
        f"but its frames could not be written to {tmp_path / 'run/diverged.extxyz'}: No space left on device" in message
    )
