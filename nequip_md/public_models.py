"""Models that https://www.nequip.net/ publishes, by name: ``nequip.net:GROUP/MODEL:VERSION``.

The site answers ``/api/models/download/NAME`` with JSON: ``artifact.downloadUrl`` (the packaged model, on the server of an archive),
``artifact.doi``, ``newerVersionId`` and others. It gives neither the size of the file nor a checksum. So the length that the file's server
announces is compared, and every member of the file, which is a zip, with the checksum that the zip holds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from nequip_md import __version__
from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, file_kind
from nequip_md.user_cache import cache_folder

SITE = "https://www.nequip.net"
PREFIX = "nequip.net:"
PAUSE = 1.0
"""Seconds before a connection that broke is made again."""

_NAME = re.compile(r"([A-Za-z0-9-]+)/([A-Za-z0-9-]+):([A-Za-z0-9.-]+)")
_EXAMPLE = f"{PREFIX}mir-group/NequIP-OAM-L:0.1"
_CONNECTIONS = 5  # one file, at most
_DOWNLOADS = 2  # of a file that turns out to be damaged
_TIMEOUT = 30.0  # seconds without an answer
_PIECE = 1 << 18
_MEGABYTE = 1_000_000


class _Source(NamedTuple):
    """Address of a model's file, its DOI and the name of a newer version; the last two may be empty."""

    address: str
    doi: str
    newer: str


class _Cut(Exception):
    """The connection broke before the end of the file; what came is kept."""


class _Damaged(Exception):
    """The file came whole, but is no packaged model, or one with a wrong checksum."""


def is_public_name(path: str | os.PathLike) -> bool:
    """Whether this is, or was meant to be, a name of a public model instead of a path."""
    return str(path).startswith(PREFIX)


def local_file(path: str | os.PathLike) -> Path:
    """The file of a public model in the user's cache folder, downloaded if it is not there; other paths as they are.

    A file in the cache is used without network. A download that was interrupted continues where it stopped if the server allows
    that. Several processes may ask for one model: one of them downloads it, the others wait. Progress goes to standard error.

    Args:
        path: ``nequip.net:GROUP/MODEL:VERSION``, or a path.

    Raises:
        NequIPMDError: a name of another form, a model that the site does not have, no network, a file that is damaged after
            two downloads, or a cache folder that cannot be written.
    """
    if not is_public_name(path):
        return Path(path)
    parts = _NAME.fullmatch(str(path).removeprefix(PREFIX))
    if parts is None:
        raise NequIPMDError(
            f"{path} is not the name of a public model: it must read {PREFIX}GROUP/MODEL:VERSION, such as {_EXAMPLE}"
        )
    group, model, version = parts.groups()
    file = cache_folder("models") / group / model / f"{model}-{version}.nequip.zip"
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(file) as alone:
                if not file.is_file():
                    _download(parts[0], file, alone)
        except OSError as error:  # of files: those of the network have been turned into messages already
            raise NequIPMDError(
                f"cannot write {file}: {error.strerror or error}; make room there, or set XDG_CACHE_HOME to another folder"
            ) from error
    return file


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Wait until no other process downloads this file. False where the file system has no locks."""
    with open(file.with_name(file.name + ".lock"), "ab") as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process, which downloads {file}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            yield False
        else:
            yield True


def _download(name: str, file: Path, alone: bool) -> None:
    source = _source(name)
    print(f"{PREFIX}{name}: downloading {source.address} to {file}", file=sys.stderr)
    if source.newer:
        print(f"note: there is a newer version, {PREFIX}{source.newer}", file=sys.stderr)
    if source.doi:
        print(f"note: cite the model by its DOI, {source.doi}", file=sys.stderr)
    if alone:
        part = file.with_name(file.name + ".part")
        _fetch(source.address, part)
        os.replace(part, file)
    else:  # another process may write beside this one, so that the unfinished file has a name of its own
        with replacing(file) as part:
            _fetch(source.address, part)


def _source(name: str) -> _Source:
    address = f"{SITE}/api/models/download/{quote(name, safe='')}"
    by_hand = f"download the .nequip.zip of {name} from {SITE}/ by hand and give its path"
    try:
        with _open(address) as response:
            answer = json.loads(response.read(_MEGABYTE))
        artifact = answer["artifact"] or {}
        source = _Source(
            str(artifact["downloadUrl"]), str(artifact.get("doi") or ""), str(answer.get("newerVersionId") or "")
        )
        scheme = urlsplit(source.address).scheme
    except HTTPError as error:
        if error.code == 404:
            raise NequIPMDError(
                f"{PREFIX}{name}: there is no such model or version; {SITE}/ lists the names of all"
            ) from error
        raise NequIPMDError(f"{PREFIX}{name}: {address} answers {error.code} {error.reason}; {by_hand}") from error
    except (OSError, HTTPException) as error:
        raise NequIPMDError(f"{PREFIX}{name}: cannot reach {address} ({_reason(error)}); {by_hand}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NequIPMDError(f"{PREFIX}{name}: the answer of {address} names no file to download; {by_hand}") from error
    # an address of another kind could name a file of this machine, or let others change what comes
    if scheme not in ("https", urlsplit(SITE).scheme):
        raise NequIPMDError(f"{PREFIX}{name}: the address of its file, {source.address}, is not https; {by_hand}")
    return source


def _fetch(address: str, part: Path) -> None:
    """Bring the whole, sound file to ``part``, which may hold the beginning of it."""
    by_hand = f"or download {address} by hand and give its path"
    connections = downloads = 0
    while True:
        connections += 1
        try:
            _continue(address, part)
            _check(part)
            return
        except _Damaged as error:
            part.unlink()
            connections, downloads = 0, downloads + 1
            if downloads == _DOWNLOADS:
                raise NequIPMDError(
                    f"the file at {address} is damaged or no packaged model ({error}), and was deleted; try again later, {by_hand}"
                ) from error
            print(f"note: the file is damaged ({error}); it is downloaded again", file=sys.stderr)
        except HTTPError as error:
            raise NequIPMDError(f"{address} answers {error.code} {error.reason}; try again later, {by_hand}") from error
        except _Cut as error:
            if connections == _CONNECTIONS:
                there = part.stat().st_size if part.exists() else 0
                again = f"the first {there} bytes are kept: try again to continue" if there else "try again later"
                raise NequIPMDError(f"cannot download {address} ({error}); {again}, {by_hand}") from error
            time.sleep(PAUSE)


def _continue(address: str, part: Path) -> None:
    """One connection: append what is missing, or write all where the server does not send parts."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(address, {"Range": f"bytes={have}-"} if have else {})
    except HTTPError as error:
        if (
            have and error.code == 416
        ):  # there is nothing after what is here: it is whole, or the beginning of another file
            if _announced(error.headers.get("Content-Range")) == (None, have):
                return
            part.unlink()
            raise _Cut("the file on the server has changed") from error
        if error.code in (429, 500, 502, 503, 504):
            raise _Cut(f"it answers {error.code} {error.reason}") from error
        raise
    except (OSError, HTTPException) as error:
        raise _Cut(_reason(error)) from error
    with response:
        if response.status == 206:
            start, total = _announced(response.headers.get("Content-Range"))
            if start != have:
                part.unlink()
                raise _Cut("the server sent another part than was asked for")
        else:
            have = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
        with open(part, "r+b" if have else "wb") as file, _progress(have, total) as advance:
            file.seek(have)
            for piece in _pieces(response):
                file.write(piece)
                have += len(piece)
                advance(have)
    if total is not None and have != total:
        raise _Cut(f"the connection broke after {have} of {total} bytes")


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            piece = response.read(_PIECE)
        except (OSError, HTTPException) as error:
            raise _Cut(_reason(error)) from error
        if not piece:
            return
        yield piece


def _announced(content_range: str | None) -> tuple[int | None, int | None]:
    """First byte and size of the whole file in a header such as ``bytes 10-99/100`` or ``bytes */100``."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", content_range or "")
    if match is None:
        return None, None
    return tuple(int(text) if text and text != "*" else None for text in match.groups())


def _check(part: Path) -> None:
    try:
        with zipfile.ZipFile(part) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _Damaged(f"as a zip file: {error}") from error
    if wrong is not None:
        raise _Damaged(f"its member {wrong} has another checksum")
    if (kind := file_kind(part)) is not FileKind.UPSTREAM_PACKAGE:
        raise _Damaged(f"it is {kind}")


def _open(address: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    request = Request(address, headers={"User-Agent": f"nequip-md/{__version__}", **(headers or {})})
    response = urlopen(request, timeout=_TIMEOUT)
    if urlsplit(response.url).scheme not in ("https", urlsplit(SITE).scheme):
        response.close()
        raise URLError(f"it leads to {response.url}, which is not https")
    return response


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__


@contextmanager
def _progress(done: int, total: int | None) -> Iterator:
    """A line on standard error; gives the function to call with the number of bytes that are there."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("download", total=total, completed=done)
        yield lambda bytes_there: progress.update(task, completed=bytes_there)
