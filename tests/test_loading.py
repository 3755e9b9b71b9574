"""Files that cannot be loaded in Python, what loading leaves behind, and folders that belong to others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from nequip_md import NequIPMDError, inductor_cache
from nequip_md.artifact import load_artifact, read_metadata
from nequip_md.kernels.static_library import build_once
from nequip_md.memory import keep_freed_memory
from support.artifacts import with_metadata
from support.damage import DAMAGES, METADATA, damaged, rewritten
from support.folders import in_mounted_folder


@pytest.fixture
def artifact(small_models) -> Path:
    return small_models("allegro_fp32")[1]


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged(artifact, tmp_path, temporary, case):
    with pytest.raises(NequIPMDError, match="is damaged .*copy it again"):
        load_artifact(damaged(artifact, tmp_path / "damaged.pt2", case))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_are_no_table(artifact, tmp_path, case):
    with pytest.raises(NequIPMDError, match="has unusable metadata .*nequip-md-export"):
        read_metadata(rewritten(artifact, tmp_path / "other.pt2", metadata=METADATA[case]))


@pytest.mark.parametrize(
    "key, value",
    [
        ("cutoff", "nan"),
        ("cutoff", "-1"),
        ("cutoff", "inf"),
        ("cutoff", "far"),
        ("pair_cutoffs", "4 4 4"),
        ("pair_cutoffs", "4 4 4 5"),
        ("pair_cutoffs", "4 4 4 nan"),
        ("energy_unit", "Ha"),
        ("length_unit", "bohr"),
        ("precision", "fp8"),
        ("device", "tpu"),
        ("type_names", " "),
        ("message_passing_layers", "-1"),
        ("message_passing_layers", "two"),
        ("ghosts", "some"),
        ("networks", "0"),
        ("networks", "several"),
    ],
)
def test_unusable_metadata(artifact, tmp_path, key, value):
    with pytest.raises(NequIPMDError, match=f"unusable metadata {key} = '{value}'"):
        load_artifact(with_metadata(artifact, tmp_path / "other.pt2", **{key: value}))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_members(artifact, tmp_path, method):
    """Nothing is unpacked that could be a thousand times larger than the file."""
    path = rewritten(artifact, tmp_path / "other.pt2", metadata=" " * 5_000_000, compression=method)
    with pytest.raises(NequIPMDError, match="has a compressed member"):
        load_artifact(path)


@pytest.mark.parametrize("library", [b"", b"not a library", b"\x7fELF" + bytes(5000)])
def test_foreign_code(artifact, tmp_path, temporary, library):
    with pytest.raises(NequIPMDError, match="the compiled code in .* does not load .*nequip-md-export"):
        load_artifact(rewritten(artifact, tmp_path / "other.pt2", library=library))
    assert not list(temporary.iterdir())


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt2")
    with pytest.raises(NequIPMDError, match="pipe.pt2 is a pipe or a device"):
        load_artifact(tmp_path / "pipe.pt2")
    with pytest.raises(NequIPMDError, match="is a folder, not a file"):
        load_artifact(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/text", "text")
    with pytest.raises(NequIPMDError, match="not a compiled model .*no compiled code"):
        load_artifact(tmp_path / "other.pt2")


def test_temporary_folder_is_missing(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(NequIPMDError, match="cannot be unpacked to .*No such file.*TMPDIR to a folder with . MB"):
        load_artifact(artifact)


MOUNTED = {"noexec": ("noexec", "mounted noexec"), "full": ("size=100k", "No space left on device")}


@pytest.mark.parametrize("case", MOUNTED)
def test_temporary_folder_cannot_be_used(artifact, tmp_path, case):
    options, reason = MOUNTED[case]
    load = f"from nequip_md.artifact import load_artifact; load_artifact({str(artifact)!r})"
    outcome = in_mounted_folder(options, [sys.executable, "-c", load], tmp_path)
    last = outcome.stderr.splitlines()[-1]
    assert outcome.returncode == 1
    assert (
        "NequIPMDError: the model cannot be unpacked to" in last
        and reason in last
        and "TMPDIR to a folder with" in last
    ), outcome.stderr


LOAD_AND_EXPORT = """
import os, stat, sys
from pathlib import Path
import torch
from nequip_md.artifact import load_artifact
from nequip_md.export import artifact_metadata, write_artifact
from nequip_md.export.validate import validate_artifact

def listing(): return sorted(os.listdir(os.environ["TMPDIR"]))
before = listing()
artifact = load_artifact(sys.argv[1])
assert all(r.passed for r in validate_artifact(artifact, quick=True))
assert listing() == before, listing()
used = [name for name in sys.modules if name.startswith("torch._inductor")]
assert not used, used

class Spring(torch.nn.Module):
    def forward(self, edge_vectors, edge_index, row_ptr, node_types):
        return (0.0 * row_ptr[1:].double()).index_add(0, edge_index[0], (edge_vectors**2).sum(1))

write_artifact(Spring(), sys.argv[2], artifact_metadata(kind="spring", type_names=["A"], cutoff=3.0))
folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
assert folder.parent == Path(os.environ["TMPDIR"]) and stat.S_IMODE(folder.stat().st_mode) == 0o700
assert any(folder.rglob("*.so")), "Inductor did not use the folder"
print("done")
"""


def test_nothing_comes_from_a_common_folder(artifact, tmp_path):
    """Whoever makes Inductor's default folder first could have code run: loading needs no Inductor, export has its own folder."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o1777)
    prepared = common / Path(default_cache_dir()).name
    prepared.mkdir(mode=0o777)
    # without what conftest.py sets: an export as of users
    ours = ("TORCHINDUCTOR_CACHE_DIR", "AOT_INDUCTOR_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_EXPORT, artifact, tmp_path / "spring.pt2"],
        capture_output=True,
        text=True,
        env={**environment, "TMPDIR": str(common), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "done" in done.stdout, done.stdout + done.stderr
    assert done.stderr == ""
    assert list(common.iterdir()) == [prepared], "something was left behind"
    assert not list(prepared.rglob("*")), "Inductor used the folder that another user may have prepared"


def test_cache_of_the_user(tmp_path, monkeypatch):
    chosen = tmp_path / "chosen"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(chosen))
    assert inductor_cache.use_private_cache() == chosen and chosen.stat().st_mode & 0o777 == 0o700
    chosen.chmod(0o777)
    with pytest.raises(NequIPMDError, match="TORCHINDUCTOR_CACHE_DIR is .*chosen, where other users can put code"):
        inductor_cache.use_private_cache()


def test_libraries_are_compiled_once_for_a_cache(tmp_path, monkeypatch):
    """A library is built again if its source, a header, the options or the compiler's instructions differ."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    headers, source, options = tmp_path / "headers", tmp_path / "code" / "code.cpp", ["-DNUMBER=1"]
    for folder in (headers, source.parent):
        folder.mkdir()
    source.write_text('#include "number.h"\nextern "C" int number() { return NUMBER + MORE; }\n')
    (headers / "number.h").write_text("#define MORE 1\n")
    first = build_once("number", source, headers, options)
    made = (first / "libnumber.a").stat()
    assert build_once("number", source, headers, options) == first
    assert (first / "libnumber.a").stat() == made
    others = [build_once("number", source, headers, more) for more in (["-DNUMBER=2"], [*options, "-mno-sse3"])]
    (headers / "number.h").write_text("#define MORE 2\n")
    others.append(build_once("number", source, headers, options))
    source.write_text("#error no code\n")
    with pytest.raises(NequIPMDError, match="(?s)compiling the kernels failed.*no code"):
        build_once("number", source, headers, options)
    assert len({first, *others}) == 4 and sorted((tmp_path / "cache").iterdir()) == sorted({first, *others})


FAULTS = """
import resource, sys
import torch
from nequip_md.kernels.static_library import build_once
from nequip_md.memory import keep_freed_memory
changed = keep_freed_memory()
def step():
    torch.ones(12_000_000)
for _ in range(20): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="not glibc, or the user's own settings")
def test_freed_memory_is_kept():
    """Page faults of ten steps with a buffer of 48 MB, which is 11719 pages: by default glibc gives it back every time."""

    def faults(**environment: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        changed, count = done.stdout.split()
        return changed, int(count)

    kept, left_alone = faults(), faults(GLIBC_TUNABLES="glibc.malloc.arena_test=8")
    assert (kept[0], left_alone[0]) == ("True", "False")
    assert left_alone[1] > 100_000 > 10_000 > kept[1], (kept, left_alone)
