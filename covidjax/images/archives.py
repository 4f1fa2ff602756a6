"""ZIP and TAR archives read in place: nothing in them is ever unpacked, and their names are never opened as files."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from tarfile import HeaderError
from typing import IO, Any, NamedTuple, Protocol

from covidjax.errors import ImageError
from covidjax.images.formats import SUFFIXES, Limits, too_long

ZIP = (".zip",)

TAR = (".tar",)

TAR_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

LONGEST_HEADER = 2**20
"""Most bytes of a TAR header; such as hold long names have some hundreds."""

_COMPRESSIONS = {(".gz", ".tgz"): gzip.open, (".bz2", ".tbz2"): bz2.open, (".xz", ".txz"): lzma.open}

_END: Any = vars(tarfile)["EOFHeaderError"]
"""Two blocks of zeros, which no type checker knows of."""

_Entry = tuple[str, Callable[[], bytes] | None]
"""Name, and what reads the first bytes of a file in an archive; None where it is no regular file."""


def is_archive(path: Path) -> bool:
    """Whether a file is taken for an archive, by its ending."""
    return path.name.lower().endswith((*ZIP, *TAR, *TAR_COMPRESSED))


class LoadedMember(NamedTuple):
    """A member that was read already."""

    name: str
    data: bytes | None
    error: str = ""

    def __fspath__(self) -> str:
        return self.name


class _Archive(Protocol):
    in_turn: bool

    def entries(self) -> Iterator[_Entry]: ...
    def read(self, index: int, limits: Limits) -> bytes: ...
    def close(self) -> None: ...


class Member:
    """A file in an archive. ``os.fspath`` of it is ``archive.zip/inner/name.png``, which names it and opens nothing.

    Attributes:
      in_turn: whether members have to be read one after another, since the archive is one compressed stream.
    """

    def __init__(self, archive: str, changed: int, name: str, index: int, in_turn: bool):
        # Without what would lead out of the archive, where such names are written below a folder.
        inside = [part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "//", "..", ".")]
        self._archive, self._changed, self._index = archive, changed, index
        self._path = os.path.join(archive, *inside)
        self.in_turn = in_turn

    def __fspath__(self) -> str:
        return self._path

    def read(self, limits: Limits) -> bytes:
        """The member's bytes.

        Raises:
          RadiographError: longer than the limits, encrypted, damaged.
        """
        try:
            return _opened(self._archive, self._changed).read(self._index, limits)
        except ImageError:
            raise
        # The standard library's readers answer damage with nearly any error.
        except Exception as error:
            raise ImageError(f"cannot be read from its archive: {_reason(error)}") from error

    def load(self, limits: Limits) -> LoadedMember:
        """The member, read now. Never raises for its faults."""
        try:
            return LoadedMember(self._path, self.read(limits))
        except ImageError as error:
            return LoadedMember(self._path, None, str(error))


class Members(NamedTuple):
    """What an archive holds."""

    films: list[Member]
    """In the archive's own order."""
    others: int
    """Files that are no films; hidden ones, which begin with a dot, are not counted."""
    fault: str
    """Why the archive, or the rest of it, cannot be read; empty where it can."""


def members(path: str) -> Members:
    """The films in an archive: by their endings, or because they begin as a DICOM file does."""
    found: list[Member] = []
    others, fault = 0, ""
    archive: _Archive | None = None
    try:
        changed = Path(path).stat().st_mtime_ns
        archive = _open(path)
        for index, (name, head) in enumerate(archive.entries()):
            parts = PurePosixPath(name).parts
            if any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts):
                continue
            if head and _may_be_film(PurePosixPath(name), head):
                found.append(Member(path, changed, name, index, archive.in_turn))
            else:
                others += 1
    # As in Member.read.
    except Exception as error:
        fault = f"damaged archive: {_reason(error)}"
    finally:
        if archive:
            archive.close()
    return Members(found, others, fault)


def _may_be_film(name: PurePosixPath, head: Callable[[], bytes]) -> bool:
    if name.suffix.lower() in SUFFIXES:
        return True
    if name.name.upper() == "DICOMDIR":
        return False
    try:
        return head()[128:] == b"DICM"
    except Exception:  # an encrypted text, perhaps: nothing says that it is a film
        return False


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _open(path: str) -> _Archive:
    return _Zip(path) if path.lower().endswith(ZIP) else _Tar(path)


@functools.lru_cache(maxsize=2)
def _opened(path: str, changed: int) -> _Archive:
    """An open archive: the one that is read, and the one before it, whose last members may still be asked for."""
    return _open(path)


class _Zip:
    in_turn = False

    def __init__(self, path: str):
        self._zip = zipfile.ZipFile(path)
        self._infos = [info for info in self._zip.infolist() if not info.is_dir()]

    def entries(self) -> Iterator[_Entry]:
        for info in self._infos:
            yield info.filename, partial(self._head, info)

    def _head(self, info: zipfile.ZipInfo) -> bytes:
        with self._zip.open(info) as file:
            return file.read(132)

    def read(self, index: int, limits: Limits) -> bytes:
        info = self._infos[index]
        if info.file_size > limits.bytes:
            raise too_long(limits)
        with self._zip.open(info) as file:
            return _bounded(file, limits)

    def close(self) -> None:
        self._zip.close()


class _Header(tarfile.TarInfo):
    """Keeps why the headers came to an end: tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            tarfile.end = error
            raise


class _Headers:
    """The archive as tarfile reads it, for headers only: one that claims to be longer than any is not read."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, length: int) -> bytes:
        if length > LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return self._file.read(length)


class _Tar:
    """Where a TAR archive is not compressed, its members lie in the file as they are, for any thread. A compressed one is
    read from its beginning to its end; what lies between two members that are wanted is skipped."""

    def __init__(self, path: str):
        name = path.lower()
        self.in_turn = not name.endswith(TAR)
        opened = next((each for end, each in _COMPRESSIONS.items() if name.endswith(end)), open)
        self._path, self._lock = path, threading.Lock()
        self._file: Any = opened(path, "rb")
        try:
            headers: Any = _Headers(self._file)
            self._tar: Any = tarfile.open(fileobj=headers, mode="r:", tarinfo=_Header)
        except BaseException:
            self._file.close()
            raise
        self._last = -1
        self._places: list[tuple[int, int]] = []
        """Of the members so far: where each begins, and its size."""

    def _next(self) -> tarfile.TarInfo | None:
        """The next header of anything but a folder, or None after the last.

        Raises:
          ReadError: the archive is damaged, or cut off.
        """
        while True:
            info = self._tar.next()
            self._tar.members = []  # of a hundred thousand nobody needs a list
            if info is None:
                if not isinstance(self._tar.end, _END):
                    raise tarfile.ReadError(f"it is cut off ({self._tar.end})")
                return None
            if info.offset <= self._last or info.size < 0:
                raise tarfile.ReadError("a header leads backwards")
            self._last = info.offset
            if not info.isdir():
                self._places.append((info.offset_data, info.size))
                return info

    def entries(self) -> Iterator[_Entry]:
        """Links, devices and sparse files, which can claim any size, are no regular files."""
        while info := self._next():
            regular = info.isreg() and info.sparse is None
            yield info.name, partial(self._bytes, *self._places[-1], 132) if regular else None

    def read(self, index: int, limits: Limits) -> bytes:
        with self._lock:
            while len(self._places) <= index:
                if self._next() is None:
                    raise tarfile.ReadError("it ends before this file")
            start, size = self._places[index]
            if size > limits.bytes:
                raise too_long(limits)
            if self.in_turn:
                return self._whole(self._bytes(start, size, size), size)
        return self._whole(os.pread(self._file.fileno(), size, start), size)

    def _bytes(self, start: int, size: int, most: int) -> bytes:
        self._file.seek(start)
        return self._file.read(min(size, most))

    def _whole(self, data: bytes, size: int) -> bytes:
        if len(data) != size:
            raise tarfile.ReadError("it is cut off")
        return data

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def _bounded(file: IO[bytes], limits: Limits) -> bytes:
    # Whatever size the archive declares.
    data = file.read(limits.bytes + 1)
    if len(data) > limits.bytes:
        raise too_long(limits)
    return data


Source = str | os.PathLike[str]
"""A file, or an ``archives.Member``."""
