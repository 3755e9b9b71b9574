"""Files are replaced as a whole or not at all, however the writer ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from nequip_md.atomic import replacing
from nequip_md.checkpoint import save
from nequip_md.errors import NequIPMDError
from nequip_md.export.package import artifact_target
from nequip_md.model import AllegroConfig, build_model

# a command of this package that is busy writing
WRITER = """
import sys, time
from nequip_md.cli import exit_status
from nequip_md.atomic import replacing

def program():
    with replacing(sys.argv[1]) as unfinished:
        unfinished.write_bytes(b"new")
        print("writing", flush=True)
        time.sleep(60)

sys.exit(exit_status(program))
"""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("old")
    return path


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def start_writer(path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_the_new_file_appears_when_it_is_complete(old):
    link = old.with_name("link.pt2")
    link.symlink_to(old.name)
    with replacing(link) as unfinished:
        unfinished.write_text("new")
        assert old.read_text() == "old"
    assert link.is_symlink() and old.read_text() == "new" and names(old.parent) == ["link.pt2", "model.pt2"]


def test_an_exception_leaves_the_old_file(old):
    with pytest.raises(ZeroDivisionError), replacing(old) as unfinished:
        unfinished.write_text("new")
        raise ZeroDivisionError
    assert old.read_text() == "old" and names(old.parent) == ["model.pt2"]


@pytest.mark.parametrize(
    "number, status, message", [(signal.SIGTERM, 143, "ended by SIGTERM\n"), (signal.SIGINT, 130, "ended by Ctrl-C\n")]
)
def test_a_signal_leaves_the_old_file(old, number, status, message):
    process = start_writer(old)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, message)
    assert old.read_text() == "old" and names(old.parent) == ["model.pt2"]


def test_what_a_killed_writer_leaves_is_removed_by_the_next(old):
    killed, alive = start_writer(old), start_writer(old)
    killed.kill()
    killed.communicate(timeout=60)
    try:
        left = names(old.parent)
        assert (
            old.read_text() == "old"
            and len(left) == 3
            and all(name.startswith(".model.unfinished-") for name in left[:2])
        )
        for name in left[:2]:
            os.utime(old.with_name(name), (time.time() - 120,) * 2)
        with replacing(old) as unfinished:
            unfinished.write_text("new")
        assert old.read_text() == "new" and len(names(old.parent)) == 2, "the file of the living writer stays"
    finally:
        alive.kill()
        alive.communicate(timeout=60)


@pytest.fixture
def small_disk():
    """No file may become larger than a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space(old, small_disk):
    with pytest.raises(
        NequIPMDError, match="cannot write .*model.pt2: File too large; choose a folder .* that has space"
    ):
        with artifact_target(old) as unfinished:
            unfinished.write_bytes(bytes(2**21))
    torch.manual_seed(0)
    model = build_model(AllegroConfig(type_names=["H"], cutoff=3.0, num_scalar_features=256, allegro_mlp_width=512))
    with pytest.raises(NequIPMDError, match="cannot write checkpoint .*model.pt2: File too large"):
        save(old, model)
    assert old.read_text() == "old" and names(old.parent) == ["model.pt2"]
