"""Models by name: a server on this machine answers as https://www.nequip.net/ and the archive of its files do."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import nequip_md
from nequip_md import NequIPMDError, public_models
from nequip_md.artifact import load_artifact, read_metadata
from nequip_md.bench.compilation import model_config
from nequip_md.export import cli, export_checkpoint
from nequip_md.export import package as packaging
from nequip_md.graph import Structure, build_graph
from nequip_md.info import model_facts
from nequip_md.model import energy_and_gradient
from nequip_md.public_models import local_file
from nequip_md.training.config import check_config
from nequip_md.training.evaluation.parts import load_evaluator
from support.structures import triclinic_crystal

NAME = "nequip.net:some-group/Some-Model:0.1"
FILE = "/records/7/model.nequip.zip"


class Site(ThreadingHTTPServer):
    """Both servers in one: the site's interface, and a file.

    Attributes:
        content: of the file.
        ranges: whether parts of it are sent.
        cuts: lengths after which the next connections break.
        spoiled: how many times the file is sent with a wrong byte.
        status: of the answer to a request of the file, 200 if it is sent.
        answer: what the interface says about the model; None for what is right.
        requests: (path, Range header) of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.content, self.ranges, self.cuts, self.spoiled, self.status = content, True, [], 0, 200
        self.answer, self.newer, self.requests = None, None, []

    @property
    def downloads(self) -> list[str | None]:
        """The Range header of each request of the file."""
        return [part for path, part in self.requests if path == FILE]


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        site, part = self.server, self.headers.get("Range")
        site.requests.append((self.path, part))
        if self.path == FILE:
            self.send_file(part)
        elif unquote(self.path) == "/api/models/download/some-group/Some-Model:0.1" and "%2F" in self.path:
            artifact = {"downloadUrl": site.address + FILE, "hostName": "archive", "doi": "10.1/x", "viewUrl": ""}
            right = {"modelId": "some-group/Some-Model:0.1", "newerVersionId": site.newer, "artifact": artifact}
            self.send(200, json.dumps(right).encode() if site.answer is None else site.answer)
        else:
            self.send(404, b"{}")

    def send_file(self, part: str | None) -> None:
        site = self.server
        content = bytearray(site.content)
        if site.spoiled:
            site.spoiled -= 1
            content[len(content) // 2] ^= 1
        start = int(re.fullmatch(r"bytes=(\d+)-", part)[1]) if part and site.ranges else 0
        if site.status != 200:
            self.send(site.status, b"")
        elif start >= len(content):
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            place = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
            cut = site.cuts.pop(0) if site.cuts else None
            self.send(206 if start else 200, bytes(content[start:]), place, cut)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def package(upstream_models):
    """A small packaged model, made by upstream."""
    return upstream_models / "allegro.nequip.zip"


@pytest.fixture
def site(package, tmp_path, monkeypatch):
    """The server, beside an empty cache folder."""
    with Site(package.read_bytes()) as server:
        monkeypatch.setattr(public_models, "SITE", server.address)
        monkeypatch.setattr(public_models, "PAUSE", 0.0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cached(tmp_path):
    """The place of the file in the cache."""
    return tmp_path / "cache" / "nequip-md" / "models" / "some-group" / "Some-Model" / "Some-Model-0.1.nequip.zip"


def files_beside(path) -> set[str]:
    return {other.name for other in path.parent.iterdir() if other.suffix != ".lock"}


def test_downloaded_once(site, cached, package, capsys):
    site.newer = "some-group/Some-Model:0.2"
    model, expected = nequip_md.load_checkpoint(NAME), nequip_md.load_checkpoint(package)
    assert model.config == expected.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))
    assert files_beside(cached) == {cached.name} and cached.read_bytes() == package.read_bytes()
    told = capsys.readouterr()
    assert not told.out, "progress is no result"
    for text in (site.address + FILE, str(cached), "10.1/x", "nequip.net:some-group/Some-Model:0.2"):
        assert text in told.err
    requests = len(site.requests)
    assert requests == 2 and local_file(NAME) == cached
    assert model_facts(NAME)["checkpoint_sha256"] == model_facts(package)["checkpoint_sha256"]
    assert len(site.requests) == requests and not capsys.readouterr().err


def test_offline(site, cached, package):
    cached.parent.mkdir(parents=True)
    cached.write_bytes(package.read_bytes())
    assert nequip_md.load_checkpoint(NAME).type_names == ["Cu", "Al"]
    assert not site.requests


def test_paths_stay(site, tmp_path):
    for path in ("model.nqmd", tmp_path / "nequip.net" / "a"):
        assert str(local_file(path)) == str(path)
    assert not site.requests


def test_export_is_that_of_the_file(site, package, tmp_path, monkeypatch):
    """The code is compiled once, by name; an export of the file asks for the same metadata and accepts this code."""
    by_name, asked = tmp_path / "name.pt2", {}
    assert cli.main([NAME, "-o", str(by_name), "--precision", "fp64"]) == 0

    def compiled(_, metadata, device):
        asked.update(metadata, device_of_code=device)
        return memoryview(by_name.read_bytes()), []

    monkeypatch.setattr(packaging, "compile_model", compiled)
    export_checkpoint(package, tmp_path / "path.pt2", precision="fp64")
    made = read_metadata(by_name)
    assert asked.pop("device_of_code") == "cpu" and asked == {key: made[key] for key in asked}
    artifact, model = load_artifact(by_name), nequip_md.load_checkpoint(package)
    graph = build_graph(Structure.from_ase(triclinic_crystal(("Cu", "Al")), ["Cu", "Al"]), artifact.pair_cutoffs)
    expected = energy_and_gradient(model, *graph.tensors)
    assert expected[1].abs().max() > 1e-3
    for a, b in zip(artifact(graph), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_training_file(site, cached, tmp_path):
    """A name is no path beside the training file."""
    content = {"model": {"checkpoint": NAME}, "data": {"train": "train.extxyz", "validation_split": 4}}
    config = check_config(content, tmp_path)
    assert config.model["checkpoint"] == NAME and config.potential().type_names == ["Cu", "Al"]
    assert cached.is_file()


def test_evaluation_and_bench(site):
    for types in (load_evaluator(Path(NAME), "cpu", False).type_names, model_config(NAME, None).type_names):
        assert types == ["Cu", "Al"]


def test_broken_connection_continues(site, cached, package):
    site.cuts = [1000, 2000]
    assert local_file(NAME).read_bytes() == package.read_bytes()
    assert site.downloads == [None, "bytes=1000-", "bytes=3000-"]
    assert files_beside(cached) == {cached.name}


def test_interrupted_download_continues_later(site, cached, package):
    site.cuts = [1000, 500, 0, 0, 0]
    message = rf"cannot download {site.address}{FILE} .*the first 1500 bytes are kept: try again to continue"
    with pytest.raises(NequIPMDError, match=message):
        local_file(NAME)
    assert files_beside(cached) == {f"{cached.name}.part"}
    assert local_file(NAME).read_bytes() == package.read_bytes()
    assert site.downloads[-1] == "bytes=1500-"


def test_server_that_sends_no_parts(site, cached, package):
    site.ranges, site.cuts = False, [1000, 2000]
    assert local_file(NAME).read_bytes() == package.read_bytes()
    assert site.downloads == [None, "bytes=1000-", "bytes=2000-"]
    assert files_beside(cached) == {cached.name}


@pytest.mark.parametrize("case", ["whole", "longer", "of another file"])
def test_what_an_earlier_download_left(site, cached, package, case):
    content = package.read_bytes()
    left = {"whole": content, "longer": content + b"x", "of another file": b"x" * 1000}[case]
    cached.parent.mkdir(parents=True)
    cached.with_name(f"{cached.name}.part").write_bytes(left)
    assert local_file(NAME).read_bytes() == content
    assert site.downloads == [f"bytes={len(left)}-", *([] if case == "whole" else [None])]


def test_wrong_checksum(site, cached, package, capsys):
    site.spoiled = 1
    assert local_file(NAME).read_bytes() == package.read_bytes()
    assert site.downloads == [None, None] and "downloaded again" in capsys.readouterr().err
    cached.unlink()
    site.spoiled = 2
    with pytest.raises(NequIPMDError, match="damaged or no packaged model .*was deleted.*by hand and give its path"):
        local_file(NAME)
    assert len(site.downloads) == 4 and not files_beside(cached)


def other_zip() -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/b.txt", "no model")
    return content.getvalue()


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", other_zip()], ids=["page", "other zip"])
def test_something_else_than_a_model(site, cached, content):
    site.content = content
    with pytest.raises(NequIPMDError, match="damaged or no packaged model"):
        local_file(NAME)
    assert not files_beside(cached)


@pytest.mark.parametrize("name", ["", "model", "a/b", "a/b:", "a/b/c:1", "a/b:1/2", "../b:1", "a b/c:1", "a/b_c:1"])
def test_malformed_name(site, name):
    with pytest.raises(NequIPMDError, match=re.escape(f"nequip.net:{name} is not the name") + ".*GROUP/MODEL:VERSION"):
        nequip_md.load_checkpoint(f"nequip.net:{name}")
    assert not site.requests


def test_unknown_model(site):
    with pytest.raises(NequIPMDError, match="Some-Model:9: there is no such model or version"):
        local_file("nequip.net:some-group/Some-Model:9")


ANSWERS = {
    "no JSON": (b"<html>", "names no file to download"),
    "a list": (b"[]", "names no file to download"),
    "no artifact": (b'{"modelId": "x", "artifact": null}', "names no file to download"),
    "no address": (b'{"artifact": {}}', "names no file to download"),
    "file of this machine": (
        b'{"artifact": {"downloadUrl": "file:///etc/hostname"}}',
        "file:///etc/hostname, is not https",
    ),
    "broken address": (b'{"artifact": {"downloadUrl": "https://[x/"}}', "names no file to download"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_useless_answer(site, case):
    site.answer, message = ANSWERS[case]
    with pytest.raises(NequIPMDError, match=f"{message}.*by hand and give its path"):
        local_file(NAME)


@pytest.mark.parametrize("status, attempts", [(403, 1), (503, 5)])
def test_file_that_is_not_sent(site, status, attempts):
    site.status = status
    with pytest.raises(NequIPMDError, match=rf"{site.address}{FILE}.*{status}.*by hand and give its path"):
        local_file(NAME)
    assert len(site.downloads) == attempts


def test_no_network(site, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(public_models, "SITE", nowhere)
        with pytest.raises(NequIPMDError, match=rf"cannot reach {nowhere}/api.*\(Connection refused\).*by hand"):
            local_file(NAME)
        monkeypatch.setattr(public_models, "SITE", site.address)
        site.answer = json.dumps({"artifact": {"downloadUrl": f"{nowhere}/x.nequip.zip"}}).encode()
        with pytest.raises(
            NequIPMDError, match=rf"cannot download {nowhere}/x.nequip.zip \(Connection refused\).*by hand"
        ):
            local_file(NAME)


def test_only_https_from_the_site(site, cached, monkeypatch):
    """Also where an address leads, once it is followed."""
    monkeypatch.setattr(public_models, "SITE", "https://www.nequip.net")
    cached.parent.mkdir(parents=True)
    with pytest.raises(NequIPMDError, match=f"leads to {site.address}{FILE}, which is not https"):
        public_models._fetch(site.address + FILE, cached)
    assert not cached.exists()


def test_full_disk(site, cached):
    cached.parent.mkdir(parents=True)
    cached.with_name(f"{cached.name}.part").symlink_to("/dev/full")
    with pytest.raises(NequIPMDError, match=rf"cannot write {cached}: No space left on device.*XDG_CACHE_HOME"):
        local_file(NAME)
    assert not cached.exists()


def test_cache_that_cannot_be_written(site, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NequIPMDError, match="cannot write .*Not a directory.*XDG_CACHE_HOME"):
        local_file(NAME)


def test_processes_at_once(site, cached, package):
    code = f"from nequip_md import public_models as p; p.SITE = {site.address!r}; p.PAUSE = 0.1; print(p.local_file({NAME!r}))"
    site.cuts = [1000]  # so that one process pauses while the others start
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, f"{cached}\n"), error
    assert cached.read_bytes() == package.read_bytes()
    assert site.downloads == [None, "bytes=1000-"] and files_beside(cached) == {cached.name}


def test_file_systems_without_locks(site, cached, package, monkeypatch):
    def no_lock(*_):
        raise OSError(public_models.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(public_models.fcntl, "flock", no_lock)
    site.cuts = [1000]
    assert local_file(NAME).read_bytes() == package.read_bytes()
    assert files_beside(cached) == {cached.name}
