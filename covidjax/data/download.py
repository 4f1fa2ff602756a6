"""Published collections from the network: what there is, fetching it, checking it, unpacking it.

Nothing else in the package uses the network, and nothing here does before ``download`` is called. An archive is fetched
with pooch, by a downloader that goes on where an earlier one stopped.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import re
import shutil
import stat
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from covidjax.errors import UsageError, UserError, one_line
from covidjax.files import explaining, write_atomic

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all, 0 where nobody says) as a download goes on."""

RECEIPT = ".covidjax-download.json"
"""What was downloaded into a folder: written last, so that a folder with one is whole."""

ATTEMPTS = 5
"""Connections in a row that bring nothing before a download is given up."""

SECONDS = 60.0
"""Of silence after which a connection is taken for lost."""

PAUSE = 1.0
"""Seconds before a connection is tried again."""

_PIECE = 2**20


@dataclass(frozen=True)
class Published:
    """A collection that is published: an entry of ``downloads.toml``, which says what each field is."""

    name: str
    title: str
    licence: str
    citation: str
    layout: str = ""
    address: str = ""
    bytes: int = 0
    sha256: str = ""
    inside: str = ""
    kaggle: str = ""
    note: str = ""
    steps: tuple[str, ...] = ()


def published() -> dict[str, Published]:
    """The collections by name, in the order of ``downloads.toml``."""
    text = resources.files("covidjax.data").joinpath("downloads.toml").read_text(encoding="utf-8")
    entries: Mapping[str, dict[str, Any]] = tomllib.loads(text)
    return {name: Published(name, **entry | {"steps": tuple(entry.get("steps", ()))}) for name, entry in entries.items()}


def find(name: str) -> Published:
    """The collection of that name.

    Raises:
      UsageError: there is none.
    """
    known = published()
    if name not in known:
        raise UsageError(f"There is no collection {name!r}; choose one of {', '.join(known)}.")
    return known[name]


def download(collection: Published, to: Path, *, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Fetch a collection, check it, and unpack it into a folder.

    Args:
      collection: one that has an address or is on Kaggle; its licence is for the caller to have accepted.
      to: the folder, which is made; what an interrupted download left there is gone on with.
      progress: called as it goes on.

    Returns:
      The receipt, as written to ``to/RECEIPT``: what was downloaded, with its bytes and SHA-256.

    Raises:
      UserError: no connection, no such file, other bytes than the registry says, no space, a damaged archive, a folder that
        holds something else.
    """
    receipt, archive = to / RECEIPT, to / f".{collection.name}.zip"
    partial = archive.with_name(f"{archive.name}.partial")
    if receipt.is_file():
        had = json.loads(receipt.read_text())
        if had["name"] == collection.name:
            return had
    if to.exists() and not (archive.exists() or partial.exists()) and any(to.iterdir()):
        raise UserError(f"{to} holds something else; name an empty or a new folder.")
    with explaining(to, "free some space or name another folder"):
        to.mkdir(parents=True, exist_ok=True)
        if collection.kaggle:
            facts = _from_kaggle(collection, to)
        else:
            facts = _fetch(collection, archive, partial, progress)
            unpacked = to / ".unpacked"
            shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
            try:
                facts["refused"] = _unpack(archive, unpacked, collection.inside)
                for path in list(unpacked.iterdir()):
                    shutil.rmtree(to / path.name, ignore_errors=True)  # half moved, before it was killed
                    path.replace(to / path.name)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
        entry = {key: value for key, value in asdict(collection).items() if value and key not in ("sha256", "bytes")}
        had = {**entry, **facts}
        write_atomic(receipt, json.dumps(had, indent=2))
        archive.unlink(missing_ok=True)
    return had


def _fetch(collection: Published, archive: Path, partial: Path, progress: Progress) -> dict[str, Any]:
    """The archive, whole and checked; its bytes and digest."""
    import pooch  # here: it takes 0.1 s to import

    pooch.get_logger().setLevel(logging.WARNING)
    downloader: Any = _Downloader(partial, collection.bytes, progress)
    known = f"sha256:{collection.sha256}" if collection.sha256 else None
    try:
        pooch.retrieve(collection.address, known, archive.name, archive.parent, downloader=downloader)
    except ValueError as error:
        raise UserError(
            f"What {collection.address} gave has another SHA-256 than {collection.sha256}: it was changed or damaged, "
            "and was removed; try again, and if it stays so do not use it."
        ) from error
    size = archive.stat().st_size
    if collection.bytes and size != collection.bytes:
        archive.unlink()
        raise _wrong_size(collection.address, size, collection.bytes)
    return {"bytes": size, "sha256": pooch.file_hash(str(archive)), "known_before": bool(known)}


def _wrong_size(address: str, size: int, expected: int) -> UserError:
    return UserError(f"{address} has {size:,} bytes and not {expected:,}: it was changed; see whether its owner says why.")


class _Downloader:
    """What pooch calls to fetch a file: it goes on with what ``partial`` holds, where the server still has the same file.

    Args:
      partial: holds what came so far; beside it lies by what the server knows the file again.
      expected: bytes of the whole file, 0 where they are not known.
      progress: called as it goes on.
    """

    def __init__(self, partial: Path, expected: int, progress: Progress):
        self._partial, self._expected, self._progress = partial, expected, progress
        self._tag = partial.with_name(f"{partial.name}.tag")

    def __call__(self, url: str, output_file: Any, pooch: Any = None) -> None:
        left, had = ATTEMPTS, self._size()
        while not self._go_on(url):
            now = self._size()
            left, had = (left - 1, had) if now <= had else (ATTEMPTS, now)
            if left:
                time.sleep(PAUSE)
            else:
                raise UserError(
                    f"The connection to {url} broke off again and again, the last time after {now:,} bytes; give the same "
                    "command again, which goes on from there."
                )
        self._tag.unlink(missing_ok=True)
        self._partial.replace(output_file)

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _go_on(self, url: str) -> bool:
        """Fetch more; whether the file is whole then."""
        request = urllib.request.Request(url, headers={"User-Agent": "covidjax"})
        tag = self._tag.read_text() if self._tag.is_file() else ""
        if tag and self._size():
            request.add_header("Range", f"bytes={self._size()}-")
            request.add_header("If-Range", tag)
        try:
            answer = urllib.request.urlopen(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # there is no more than is here already, or it is another file
                self._partial.unlink(missing_ok=True)
                return False
            if error.code >= 500 or error.code == 429:  # too many requests
                return False
            raise UserError(f"{url} cannot be had ({error.code} {error.reason}); see whether it has moved.") from error
        except http.client.HTTPException:
            return False
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ConnectionError | TimeoutError):
                return False
            raise UserError(f"{url} cannot be reached ({one_line(Exception(reason))}); see to the network.") from error
        with answer:
            return self._receive(url, answer, tag)

    def _receive(self, url: str, answer: Any, tag: str) -> bool:
        begun = self._size() if answer.status == 206 else 0
        if begun and not _begins(answer, begun):  # what it gives does not belong behind what is here
            self._partial.unlink()
            return False
        length = answer.headers.get("Content-Length")
        total = begun + int(length) if length else 0
        if total and self._expected and total != self._expected:
            raise _wrong_size(url, total, self._expected)
        free = shutil.disk_usage(self._partial.parent).free
        if total - begun > free:
            raise UserError(
                f"{self._partial.parent} has {free / 1e6:,.0f} MB free, and {(total - begun) / 1e6:,.0f} MB are to come; "
                "free some space or name another folder."
            )
        if begun == 0:
            # A weak tag does not say that the bytes are the same.
            etag = answer.headers.get("ETag") or ""
            self._tag.write_text(etag if etag.startswith('"') else answer.headers.get("Last-Modified") or "")
        done = begun
        with self._partial.open("ab" if begun else "wb") as file:
            while True:
                try:
                    piece = answer.read1(_PIECE)
                except (OSError, ValueError, http.client.HTTPException):
                    return False
                if not piece:
                    return done >= (total or self._expected)  # what is too long is refused when it is checked
                file.write(piece)
                done += len(piece)
                self._progress(done, total or self._expected)


def _begins(answer: Any, start: int) -> bool:
    """Whether a part of a file begins there; a server that does not say it is believed."""
    stated = re.match(r"\s*bytes\s+(\d+)-", answer.headers.get("Content-Range") or "", re.IGNORECASE)
    return not stated or int(stated[1]) == start


def _unpack(archive: Path, to: Path, inside: str) -> int:
    """Unpack what lies in a folder of a ZIP archive; all of it where there is no such folder.

    Returns:
      How many members were left out, since they are links or would lie outside of ``to``.

    Raises:
      UserError: damaged, or larger than the free space.
    """
    refused = 0
    to.mkdir()
    try:
        with zipfile.ZipFile(archive) as zipped:
            infos = [info for info in zipped.infolist() if not info.is_dir()]
            within = PurePosixPath(inside)
            if not any(PurePosixPath(info.filename).is_relative_to(within) for info in infos):
                within = PurePosixPath()
            infos = [info for info in infos if PurePosixPath(info.filename).is_relative_to(within)]
            if (size := sum(info.file_size for info in infos)) > shutil.disk_usage(to).free:
                raise UserError(f"{to} has no room for the {size / 1e6:,.0f} MB of the unpacked files; free some space.")
            for info in infos:
                inner = PurePosixPath(info.filename).relative_to(within)
                if "__MACOSX" in inner.parts or inner.name == ".DS_Store":
                    continue
                if inner.is_absolute() or ".." in inner.parts or stat.S_ISLNK(info.external_attr >> 16):
                    refused += 1
                    continue
                path = to / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(info) as member, path.open("wb") as file:
                    shutil.copyfileobj(member, file, _PIECE)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what seeking to nowhere gives
            raise
        archive.unlink()
        raise UserError(
            f"What was downloaded is no whole ZIP archive ({one_line(error)}) and was removed; give the command again."
        ) from error
    return refused


def _from_kaggle(collection: Published, to: Path) -> dict[str, Any]:
    try:
        import kagglehub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{collection.name} is on Kaggle, whose client is not installed; install it with "
            "`pip install 'covidjax[kaggle]'`."
        ) from None
    try:
        folder = Path(kagglehub.dataset_download(collection.kaggle))
    except OSError:
        raise
    except Exception as error:  # of its own kinds, and those of requests
        raise UserError(f"Kaggle did not give {collection.kaggle} ({one_line(error)}); see to the network.") from error
    inner = folder / collection.inside
    shutil.copytree(inner if inner.is_dir() else folder, to, dirs_exist_ok=True)
    files = [path for path in to.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
