"""ZIP and TAR archives read in place: nothing in them is ever unpacked, and their names are never opened as files."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from tarfile import HeaderError
from typing import IO, Any, NamedTuple

from covidjax.errors import ImageError, one_line
from covidjax.images.formats import HEAD, Limits, may_be_image, too_long

ZIP = ".zip"

TAR = ".tar"

TAR_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

LONGEST_HEADER = 2**20
"""Most bytes of a TAR header; such as hold long names have some hundreds."""

_OPENERS = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}

_END: Any = vars(tarfile)["EOFHeaderError"]
"""Two blocks of zeros, which no type checker knows of."""

Source = str | os.PathLike[str]
"""A file, or a ``Member`` of an archive."""

_Entry = tuple[str, int, Callable[[], bytes] | None]
"""The name of a file in an archive, its declared size, and what reads its first bytes; None where it is no regular file."""


def is_archive(path: Path) -> bool:
    """Whether a file is taken for an archive, by its ending."""
    return path.name.lower().endswith((ZIP, TAR, *TAR_COMPRESSED))


def folder_name(name: str) -> str:
    """What a folder is called; an archive without its ending."""
    while is_archive(Path(name)):
        name = Path(name).stem
    return name


class LoadedMember(NamedTuple):
    """A member that was read already, or what stands for a folder or an archive that cannot be read."""

    name: str
    data: bytes | None
    error: str = ""

    def __fspath__(self) -> str:
        return self.name

    def read(self, limits: Limits) -> bytes:
        """The member's bytes.

        Raises:
          ImageError: ``error``.
        """
        if self.data is None:
            raise ImageError(self.error)
        return self.data


class Member:
    """A file in an archive. ``os.fspath`` of it is ``archive.zip/inner/name.png``, which names it and opens nothing.

    Attributes:
      in_turn: whether members have to be read one after another, since the archive is one compressed stream.
      size: bytes, as the archive declares them.
    """

    def __init__(self, archive: str, modified: int, name: str, *, index: int, in_turn: bool, size: int):
        # Without what would lead out of the archive, where such names are written below a folder.
        inside = [part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "//", "..", ".")]
        self._archive, self._modified, self._index = archive, modified, index
        self._path = os.path.join(archive, *inside)
        self.in_turn, self.size = in_turn, size

    def __fspath__(self) -> str:
        return self._path

    @property
    def name(self) -> str:
        """The file's own name, as of a path."""
        return PurePosixPath(self._path).name

    @property
    def stem(self) -> str:
        """The name without its ending, as of a path."""
        return PurePosixPath(self._path).stem

    def read(self, limits: Limits) -> bytes:
        """The member's bytes.

        Raises:
          ImageError: longer than the limits, encrypted, damaged.
        """
        try:
            return _opened(self._archive, self._modified).read(self._index, limits)
        except ImageError:
            raise
        # The standard library's readers answer damage with nearly any error.
        except Exception as error:
            raise ImageError(f"cannot be read from its archive: {one_line(error)}") from error

    def load(self, limits: Limits) -> LoadedMember:
        """The member, read now. Never raises for its faults."""
        try:
            return LoadedMember(self._path, self.read(limits))
        except ImageError as error:
            return LoadedMember(self._path, None, str(error))


def members(path: str) -> tuple[list[Member | LoadedMember], int]:
    """The images in an archive, and the number of its other files; see ``all_members``."""
    images, others = all_members(path)
    return images, len(others)


def all_members(path: str) -> tuple[list[Member | LoadedMember], list[Member]]:
    """The images in an archive, see ``formats.may_be_image``, and its other files.

    Both are in the archive's own order; where it, or the rest of it, cannot be read, the last of the images is the archive
    itself with the reason. Hidden files, which begin with a dot, are in neither.
    """
    images: list[Member | LoadedMember] = []
    others: list[Member] = []
    try:
        modified = Path(path).stat().st_mtime_ns
        with closing(_open(path)) as archive:
            for index, (name, size, head) in enumerate(archive.entries()):
                inner = PurePosixPath(name)
                if any(part.startswith((".", "__MACOSX")) and part != ".." for part in inner.parts):
                    continue
                member = Member(path, modified, name, index=index, in_turn=archive.in_turn, size=size)
                if head and may_be_image(inner, head):
                    images.append(member)
                else:
                    others.append(member)
    # As in Member.read.
    except Exception as error:
        images.append(LoadedMember(path, None, f"damaged archive: {one_line(error)}"))
    return images, others


def _open(path: str) -> _Zip | _Tar:
    return _Zip(path) if path.lower().endswith(ZIP) else _Tar(path)


@functools.lru_cache(maxsize=2)
def _opened(path: str, modified: int) -> _Zip | _Tar:
    """An open archive: the one that is read, and the one before it, whose last members may still be asked for."""
    return _open(path)


class _Zip:
    in_turn = False

    def __init__(self, path: str):
        self._zip = zipfile.ZipFile(path)
        self.close = self._zip.close
        names = self._zip.namelist()
        # Old programs of Windows part folders so.
        self._backslashes = any("\\" in name for name in names) and not any("/" in name for name in names)
        self._infos = [info for info in self._zip.infolist() if not self._name(info).endswith("/")]

    def _name(self, info: zipfile.ZipInfo) -> str:
        return info.filename.replace("\\", "/") if self._backslashes else info.filename

    def entries(self) -> Iterator[_Entry]:
        for info in self._infos:
            yield self._name(info), info.file_size, partial(self._bytes, info, HEAD)

    def read(self, index: int, limits: Limits) -> bytes:
        info = self._infos[index]
        if info.file_size <= limits.bytes:
            data = self._bytes(info, limits.bytes + 1)
            if len(data) <= limits.bytes:  # whatever size the archive declares
                return data
        raise too_long(limits)

    def _bytes(self, info: zipfile.ZipInfo, most: int) -> bytes:
        with self._zip.open(info) as file:
            return file.read(most)


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
        opener = next((opener for end, opener in _OPENERS.items() if name.endswith((f".{end}", f".t{end}"))), open)
        self._lock = threading.Lock()
        self._file: Any = opener(path, "rb")
        self.close = weakref.finalize(self, self._file.close)
        headers: Any = _Headers(self._file)
        self._tar: Any = tarfile.open(fileobj=headers, mode="r:", tarinfo=_Header)
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
            yield info.name, info.size, partial(self._bytes, info.offset_data, min(info.size, HEAD)) if regular else None

    def read(self, index: int, limits: Limits) -> bytes:
        with self._lock:
            while len(self._places) <= index:
                if self._next() is None:
                    raise tarfile.ReadError("it ends before this file")
            start, size = self._places[index]
            if size > limits.bytes:
                raise too_long(limits)
            data = self._bytes(start, size) if self.in_turn else None
        if data is None:
            data = os.pread(self._file.fileno(), size, start)
        if len(data) != size:
            raise tarfile.ReadError("it is cut off")
        return data

    def _bytes(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return self._file.read(length)
