"""The output folder of a training run: no result is lost, no damaged or foreign file is used."""

import os
import resource
import shutil
import tempfile
import zipfile

import ase.io
import numpy as np
import pytest
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.training.folder import held
from nequip_md.training.states import read_state
from support.training_runs import assert_same_end, run, write_data

FILES = ("best.nqmd", "last.ckpt", "previous.ckpt", "report.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def three_epochs(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "three"
    assert run(folder, output) == 0
    return output


@pytest.fixture(scope="module")
def four_epochs(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "four"
    assert run(folder, output, stop={"max_epochs": 4}) == 0
    return output


@pytest.fixture
def output(three_epochs, tmp_path):
    """A copy of the folder of a run of three epochs."""
    return shutil.copytree(three_epochs, tmp_path / "run")


def content(output):
    return {name: (output / name).read_bytes() for name in FILES if (output / name).exists()}


def flipped(data, position, bit=0):
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def foreign(path):
    torch.save({"state_dict": {}}, path)


DAMAGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": lambda path: path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2)),
    "missing": lambda path: path.unlink(),
    "foreign": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_state_before_takes_the_place_of_a_damaged_one(folder, output, four_epochs, damage, capsys):
    DAMAGES[damage](output / "last.ckpt")
    before = (output / "previous.ckpt").read_bytes()
    assert run(folder, output, "--resume") == 0
    assert f"resuming from {output / 'previous.ckpt'}, the state before it" in capsys.readouterr().out
    assert (output / "previous.ckpt").read_bytes() == before  # the damaged file has not pushed it out
    assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 0
    assert_same_end(output, four_epochs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_good_state_the_run_ends_and_changes_nothing(folder, output, damage, capsys):
    for name in ("last.ckpt", "previous.ckpt"):
        DAMAGES[damage](output / name)
    before = content(output)
    assert run(folder, output, "--resume") == 1
    error = capsys.readouterr().err
    assert "there is no run to resume" in error and "last.ckpt" in error and "previous.ckpt" in error
    assert content(output) == before


def test_no_wrong_bit_of_a_state_is_taken_up(three_epochs, tmp_path):
    path = tmp_path / "last.ckpt"
    good = (three_epochs / "last.ckpt").read_bytes()
    expected = read_state(three_epochs / "last.ckpt")
    rng = np.random.default_rng(3)
    positions = rng.integers(len(good), size=60)
    with zipfile.ZipFile(three_epochs / "last.ckpt") as archive:
        directory, count = archive.start_dir, len(archive.infolist())
    # the attributes of a member: torch takes one with bit 4 for a folder and leaves its tensor unfilled
    attributes = [k + 38 for k in range(directory, len(good)) if good[k : k + 4] == b"PK\1\2"]
    assert len(attributes) == count
    refused = 0
    for position, bit in [*((p, rng.integers(8)) for p in positions), *((p, 4) for p in attributes)]:
        path.write_bytes(flipped(good, position, bit))
        try:
            found = read_state(path)
        except NequIPMDError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        for key in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
        assert found["loops"] == expected["loops"] and found["nequip_md"]["record"] == expected["nequip_md"]["record"]
    assert refused > 30


def test_states_are_replaced_and_not_overwritten(folder, output, monkeypatch):
    """Also where TMPDIR is on another file system than the output, as /dev/shm is."""
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm" if os.path.isdir("/dev/shm") else None)
    before = (output / "last.ckpt").read_bytes()
    os.link(output / "last.ckpt", output / "link")
    assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 0
    assert (output / "link").read_bytes() == (output / "previous.ckpt").read_bytes() == before


def test_a_full_disk_costs_one_epoch(folder, output, four_epochs, capsys):
    before = content(output)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the model may still be written, the state may not
    size = ((output / "best.nqmd").stat().st_size + (output / "last.ckpt").stat().st_size) // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert f"cannot write {output / 'last.ckpt'}: File too large; the state after epoch 3 is saved in" in error
    assert {k: v for k, v in content(output).items() if k.endswith(".ckpt")} == {
        k: v for k, v in before.items() if k.endswith(".ckpt")
    }
    assert not list(output.glob(".*.unfinished-*"))
    assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 0
    assert_same_end(output, four_epochs)


@pytest.mark.parametrize("kept", FILES)
def test_no_file_of_a_run_is_removed_without_a_flag(folder, output, kept, capsys):
    for name in set(FILES) - {kept}:
        (output / name).unlink()
    before = content(output)
    assert run(folder, output) == 1
    assert "--resume to continue it, --overwrite to forget it" in capsys.readouterr().err
    assert content(output) == before


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"train": "absent.extxyz"}},
        {"data": {"stress_key": "absent"}},
        {"data": {"validation_split": 24}},
        {"device": "cuda"},
    ],
)
def test_overwrite_removes_nothing_before_training_can_begin(folder, output, sections, capsys):
    if "device" in sections and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    before = content(output)
    assert run(folder, output, "--overwrite", **sections) == 1
    assert content(output) == before
    assert run(folder, output, "--overwrite", stop={"max_epochs": 1}) == 0
    assert not (output / "previous.ckpt").exists()
    assert read_state(output / "last.ckpt")["epoch"] == 0


def test_a_lost_best_model_is_found_again(folder, output):
    (output / "best.nqmd").unlink()
    assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 0
    assert (output / "best.nqmd").exists()


def test_two_runs_do_not_share_a_folder(folder, output, capsys):
    before = content(output)
    with held(output):
        for flag in ("--resume", "--overwrite"):
            assert run(folder, output, flag, stop={"max_epochs": 4}) == 1
            assert f"another run is writing to {output} (process {os.getpid()} on " in capsys.readouterr().err
    assert content(output) == before
    (output / ".last.unfinished-0.ckpt").write_bytes(b"of a killed run")
    assert run(folder, output, "--resume", stop={"max_epochs": 4}) == 0
    assert not list(output.glob(".*.unfinished-*"))


def moved(frames):
    frames[3].positions[2, 1] += 1e-7


def strained(frames):
    frames[3].set_cell(frames[3].cell.array * (1 + 1e-7))


def relabelled(name):
    def change(frames):
        frames[3].calc.results[name] = frames[3].calc.results[name] + 1e-6

    return change


def swapped(frames):
    frames[0], frames[1] = frames[1], frames[0]


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        (moved, "train", "structures"),
        (strained, "train", "structures"),
        (relabelled("energy"), "train", "energy"),
        (relabelled("forces"), "train", "forces"),
        (relabelled("stress"), "train", "stress"),
        (swapped, "train", "structures"),
        (relabelled("energy"), "test", "the test data differ from those of the run to resume in energy"),
    ],
)
def test_a_run_is_not_resumed_with_other_data(folder, output, change, key, expected, capsys):
    frames = ase.io.read(folder / f"{key}.extxyz", ":")
    change(frames)
    ase.io.write(output / "other.extxyz", frames)
    before = content(output)
    assert run(folder, output, "--resume", data={key: str(output / "other.extxyz")}) == 1
    error = capsys.readouterr().err
    assert "differ from those of the run to resume" in error and expected in error
    assert content(output) == before


def test_the_same_data_may_lie_elsewhere(folder, output):
    shutil.copy(folder / "train.extxyz", output / "same.extxyz")
    assert run(folder, output, "--resume", data={"train": str(output / "same.extxyz")}) == 0


def test_a_state_of_an_older_version_is_resumed(folder, output, capsys):
    state = read_state(output / "last.ckpt")
    del state["nequip_md"]["record"]["data_digests"], state["nequip_md"]["config"]["data"]["keep_on_device"]
    torch.save(state, output / "last.ckpt")
    assert run(folder, output, "--resume") == 0
    assert "has kept no digests of its data" in capsys.readouterr().out


def test_a_state_of_a_version_with_other_keys_is_refused(folder, output, capsys):
    state = read_state(output / "last.ckpt")
    state["nequip_md"]["config"]["loss"]["dipole"] = 1.0
    torch.save(state, output / "last.ckpt")
    assert run(folder, output, "--resume") == 1
    assert "another version of nequip-md, which had other keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "reason"),
    [("file", "it is a file"), ("file/run", "Not a directory"), ("/proc/run", "No such file or directory")],
)
def test_an_output_that_cannot_be_is_refused_before_data_are_read(folder, tmp_path, capsys, output, reason):
    (tmp_path / "file").touch()
    assert run(folder, tmp_path / output, data={"train": "absent.extxyz"}) == 1
    error = capsys.readouterr().err
    assert f"cannot write to the output folder {tmp_path / output}: {reason}; give another --output" in error
