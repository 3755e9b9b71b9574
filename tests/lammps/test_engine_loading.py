"""Files that the engine cannot load, and what loading leaves behind."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import zipfile
from ctypes import byref, c_char_p, c_size_t, c_void_p

import pytest

from support.damage import DAMAGES, METADATA, damaged, rewritten
from support.folders import in_mounted_folder
from support.lammps_run import run_lammps
from support.lammps_systems import SYSTEMS, nequip

BAD_FILE, BAD_MODEL = 1, 2


@pytest.fixture(scope="module")
def load(plugin_folder):
    """``load(path)``: status and message."""
    library = ctypes.CDLL(str(plugin_folder / "libnequip_md_engine.so"))
    library.nequip_md_load.argtypes = [c_char_p, c_void_p, c_void_p, c_char_p, c_size_t]
    library.nequip_md_free.argtypes = [c_void_p]

    def load(path) -> tuple[int, str]:
        handle, message = c_void_p(), ctypes.create_string_buffer(1000)
        status = library.nequip_md_load(str(path).encode(), None, byref(handle), message, len(message))
        library.nequip_md_free(handle)
        return status, message.value.decode()

    return load


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_whole(load, lj_artifact, tmp_path, temporary):
    """A good file loads, also when another tool has written it anew, and its code is deleted at once."""
    assert load(lj_artifact) == (0, "")
    assert load(rewritten(lj_artifact, tmp_path / "anew.pt2")) == (0, "")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged(load, lj_artifact, tmp_path, temporary, case):
    status, message = load(damaged(lj_artifact, tmp_path / "damaged.pt2", case))
    assert status == BAD_FILE and re.search(
        r"damaged.pt2' is damaged \(.*copy it again .*or export the model again", message
    ), message
    assert not list(temporary.iterdir())


def test_damaged_in_lammps(lj_artifact, tmp_path):
    path = damaged(lj_artifact, tmp_path / "damaged.pt2", "a bit of the code")
    outcome = run_lammps(SYSTEMS["orthogonal"].start(tmp_path) + nequip(path) + "run 0\n", tmp_path, ranks=2)
    assert outcome.status != 0 and "is damaged (the checksum of" in outcome.text and "Loop time" not in outcome.text, (
        outcome.text
    )


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_are_no_table(load, lj_artifact, tmp_path, case):
    status, message = load(rewritten(lj_artifact, tmp_path / "other.pt2", metadata=METADATA[case]))
    assert status == BAD_MODEL and "has unusable metadata" in message and "export the model again" in message, message


def test_metadata_with_escapes(load, lj_artifact, tmp_path):
    """Every way in which JSON writes a character."""
    text = r'{ "format_version" : "\u0032", "type_names": "\u00c5 \ud83d\ude00 \"\\\/\n", "cutoff": "1" }'
    status, message = load(rewritten(lj_artifact, tmp_path / "other.pt2", metadata=text))
    assert status == BAD_MODEL and "no metadata key 'pair_cutoffs'" in message
    status, message = load(
        rewritten(lj_artifact, tmp_path / "other.pt2", metadata=text.replace(r"\u0032", r"\u00e9\ud83d\ude00\t\""))
    )
    assert 'has format version \u00e9\U0001f600\t", this engine reads' in message


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_members(load, lj_artifact, tmp_path, method):
    path = rewritten(lj_artifact, tmp_path / "other.pt2", metadata=" " * 5_000_000, compression=method)
    status, message = load(path)
    assert status == BAD_FILE and "has a compressed member" in message


@pytest.mark.parametrize("library", [b"", b"not a library", b"\x7fELF" + bytes(5000)])
def test_foreign_code(load, lj_artifact, tmp_path, temporary, library):
    status, message = load(rewritten(lj_artifact, tmp_path / "other.pt2", library=library))
    assert status == BAD_FILE and "other.pt2' does not load (" in message and "export the model again" in message
    assert not list(temporary.iterdir())


def test_what_is_no_file(load, tmp_path):
    os.mkfifo(tmp_path / "pipe.pt2")
    assert load(tmp_path / "pipe.pt2") == (
        BAD_FILE,
        f"model file '{tmp_path}/pipe.pt2' is a pipe or a device, not a file; give the .pt2 file itself",
    )
    assert load(tmp_path)[0] == BAD_FILE


def test_temporary_folder_is_missing(load, lj_artifact, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    status, message = load(lj_artifact)
    assert status == BAD_FILE
    assert re.search(
        "cannot unpack the model to '/nowhere'.*No such file.*set the environment variable TMPDIR to a folder with . MB",
        message,
    )


LOAD = """
import ctypes, sys
library, message = ctypes.CDLL(sys.argv[1]), ctypes.create_string_buffer(1000)
library.nequip_md_load(sys.argv[2].encode(), None, ctypes.byref(ctypes.c_void_p()), message, ctypes.c_size_t(1000))
print(message.value.decode())
"""
MOUNTED = {"noexec": ("noexec", "mounted noexec"), "full": ("size=100k", "No space left on device")}


@pytest.mark.parametrize("case", MOUNTED)
def test_temporary_folder_cannot_be_used(plugin_folder, lj_artifact, tmp_path, case):
    options, reason = MOUNTED[case]
    command = [sys.executable, "-c", LOAD, plugin_folder / "libnequip_md_engine.so", lj_artifact]
    said = in_mounted_folder(options, command, tmp_path).stdout
    assert (
        said.startswith("cannot unpack the model to")
        and reason in said
        and "set the environment variable TMPDIR" in said
    ), said


def test_running_leaves_nothing(lj_artifact, tmp_path):
    """While LAMMPS runs, the folder for temporary files holds nothing of ours that a killed run could leave."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = (
        SYSTEMS["orthogonal"].start(tmp_path) + nequip(lj_artifact) + f"run 1\nshell ls {temporary} > during\nrun 1\n"
    )
    outcome = run_lammps(script, tmp_path, ranks=2, env={"TMPDIR": str(temporary)})
    assert outcome.status == 0, outcome.text
    assert not [name for name in (tmp_path / "during").read_text().split() if "nequip" in name or "aotinductor" in name]
