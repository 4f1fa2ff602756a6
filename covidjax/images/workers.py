"""Decoding in processes of its own: whatever a file does to its decoder, the job goes on.

A decoder that hangs cannot be stopped from within its process, and one that crashes takes its process along. So files are
decoded by small processes that hold nothing else. One that takes longer than it may is killed, one that died is replaced,
and the file gets an error. They are started when they are wanted, wait for the next job, and end with this process.

What goes between the processes is lengths, JSON and pixels; nothing is pickled.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import environment
from covidjax.errors import ImageError, UserError
from covidjax.images import decode as decoder
from covidjax.images.decode import FileOrBytes, Invert
from covidjax.images.facts import FileFacts
from covidjax.images.formats import Limits

GRACE = 2.0
"""Seconds after a job's time in which a decoder that nobody waits for any more ends itself."""

STARTING = 120.0
"""Seconds that a decoder may take to start, on a busy machine."""

STARTS = 5
"""Decoders that are tried for a file, some of which somebody may kill, before it is said that none can be started."""

KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""Signals that come from somebody, the system perhaps, and not from the file: it is tried once more."""

_HEAD = struct.Struct("<QQ")

_ROOM = 2**30
"""Bytes of memory that a decoder has besides those for pixels."""


@dataclass(frozen=True)
class DecodeJob:
    """What is wanted of a file: gray pixels, whole, reduced or resized, see ``images.decode``."""

    size: int | None = None
    """Resized to this square; else reduced to ``at_least``, or whole."""
    at_least: int | None = None
    thumbnail: int | None = None
    """Also a copy resized to this square."""
    mask: str | None = None
    """Path of the image's lung mask, which is wanted too, at ``size``."""
    invert: Invert = "auto"
    digest: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Decoded(FileFacts):
    """What became of a file."""

    arrays: Sequence[np.ndarray] = ()
    """uint8 ``[H, W]``: the image, then the thumbnail and the mask, where they are wanted; empty on an error."""


def decode(source: FileOrBytes, job: DecodeJob) -> Decoded:
    """Decode a file, or its bytes, in a decoder process, and wait for it. Never raises for the file's faults.

    Raises:
      UserError: processes cannot be started.
    """
    # A whole path, since the process may have been started in another folder.
    data, path = (source, None) if isinstance(source, bytes) else (b"", str(Path(source).absolute()))
    with _lock:
        decoder = _idle.pop() if _idle else None
    killed = False
    for _ in range(STARTS):
        decoder = decoder or _Decoder()
        try:
            if decoder.ready():
                decoded = decoder.decode(path, data, job)
                with _lock:
                    _idle.append(decoder)
                return decoded
        except TimeoutError:
            decoder.close(kill=True)
            seconds = job.limits.seconds
            return Decoded(error=f"not decoded within {seconds:g} seconds", decode_seconds=seconds)
        except (OSError, EOFError):
            number = decoder.close()
            if killed or number not in KILLED:
                reason = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {-number}"
                return Decoded(error=f"damaged: its decoder crashed ({reason})")
            killed = True
        decoder = None
    raise UserError("A process for decoding could not be started; see that there is memory for it.")


def start(count: int) -> None:
    """Have so many decoders ready soon: they start beside whatever is done until they are wanted."""
    with _lock:
        _idle.extend(_Decoder() for _ in range(count - len(_idle)))


def stop() -> None:
    """End the decoders that wait."""
    with _lock:
        for decoder in _idle:
            decoder.link.close()  # the processes end beside each other
        while _idle:
            _idle.pop().close()


_idle: list[_Decoder] = []

_lock = threading.Lock()

atexit.register(stop)

os.register_at_fork(after_in_child=_idle.clear)  # a copy of this process has none


class _Decoder:
    """A decoder process and the socket to it."""

    def __init__(self) -> None:
        self._ready = False
        # The child finds the same modules, wherever this process has them from.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path))),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        try:
            ours, theirs = socket.socketpair()
            self.link = _Link(ours)
            if theirs.fileno() <= 2:  # where standard streams are closed; the child has its own under these numbers
                theirs = _moved(theirs)
            with theirs:
                # -P: no module is taken from the folder that the command was given in.
                # -X utf8: names of files are read as this process reads them.
                # In a group of its own: Ctrl-C is for the command, which asks its decoders no more.
                code = f"from covidjax.images.workers import serve; serve({theirs.fileno()})"
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-X", f"utf8={sys.flags.utf8_mode}", "-c", code],
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    process_group=0,
                )
        except OSError as error:  # too many processes or open files, or no memory for another
            if hasattr(self, "link"):
                self.link.close()
            raise UserError(
                f"A process for decoding could not be started ({error.strerror}); end other programs, or use fewer workers."
            ) from error

    def ready(self) -> bool:
        """Wait until the process has started; False where it did not."""
        try:
            if not self._ready:
                self.link.receive(STARTING)
            self._ready = True
        except (OSError, EOFError):
            self.close(kill=True)
        return self._ready

    def decode(self, path: str | None, data: bytes, job: DecodeJob) -> Decoded:
        """What became of a file, or of the bytes of one that has no path.

        Raises:
          TimeoutError: it took too long.
          OSError, EOFError: the process died.
        """
        timeout = job.limits.seconds + GRACE / 2
        self.link.send({"path": path, "job": asdict(job)}, [data], timeout)
        facts, body = self.link.receive(timeout)
        shapes = facts.pop("shapes")
        ends = np.cumsum([height * width for height, width in shapes], dtype=int)
        pixels = np.split(np.frombuffer(body, np.uint8), ends)
        return Decoded(arrays=[part.reshape(shape) for part, shape in zip(pixels, shapes, strict=False)], **facts)

    def close(self, kill: bool = False) -> int:
        """End the process, and say what signal it died of; minus its exit code where it ended by itself."""
        self.link.close()
        if kill:
            self._process.kill()
        try:
            return -self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            # Stuck in the system, on a disk that is gone perhaps: even SIGKILL waits for that.
            self._process.kill()
            return int(signal.SIGKILL)


def _moved(end: socket.socket) -> socket.socket:
    """The same socket under a number above those of the standard streams."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


# In the decoder process


def serve(descriptor: int) -> None:
    """Decode what is asked for on a socket until it is closed."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limits say how many
    link = _Link(socket.socket(fileno=descriptor))
    with contextlib.suppress(EOFError, OSError):
        link.send({}, [])  # ready
        while True:
            message, data = link.receive()
            job = DecodeJob(**message["job"] | {"limits": Limits(**message["job"]["limits"])})
            # By the alarm, whose signal ends a process whatever it does, it ends also where nobody waits for it.
            signal.setitimer(signal.ITIMER_REAL, job.limits.seconds + GRACE)
            _bound_memory(job.limits)
            decoded = decode_here(message["path"] if message["path"] is not None else bytes(data), job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            arrays = [np.ascontiguousarray(array) for array in decoded.arrays]
            shapes = [array.shape for array in arrays]
            link.send({**decoded.facts, "shapes": shapes}, [array.reshape(-1).data for array in arrays])
    os._exit(0)  # nothing is left to be tidied up


def decode_here(source: str | bytes, job: DecodeJob) -> Decoded:
    """``decode`` in this process."""
    start = time.perf_counter()
    arrays, error, sha256, image = [], "", "", None
    options: Any = {"invert": job.invert, "limits": job.limits}
    try:
        data = source if isinstance(source, bytes) else decoder.read_bytes(source, job.limits)
        if job.digest:
            sha256 = hashlib.sha256(data).hexdigest()
        if job.size and not job.mask:
            image = decoder.read_resized(data, job.size, job.thumbnail, **options)
            arrays = [image.pixels, *([] if image.thumbnail is None else [image.thumbnail])]
        else:
            image = decoder.read_reduced(data, job.at_least, **options)
            arrays = [decoder.resize(image.pixels, job.size) if job.size else image.pixels]
            if job.thumbnail:
                arrays.append(decoder.resize(image.pixels, job.thumbnail))
            if job.mask and job.size:
                arrays.append(decoder.read_mask(job.mask, job.size, image.pixels.shape, limits=job.limits))
    except (ImageError, MemoryError) as fault:
        arrays, image = [], None
        error = str(fault) if isinstance(fault, ImageError) else "not enough memory to decode it"
    facts = image.facts if image else {}
    return Decoded(arrays=arrays, error=error, sha256=sha256, decode_seconds=time.perf_counter() - start, **facts)


def _bound_memory(limits: Limits) -> None:
    """A decoder that allocates without end gets no memory and says so, before the whole machine has none."""
    # 16 bits a pixel stretched in float32, and the file itself a few times; and where the command may have less memory than
    # that, no more, before the system ends all of it.
    wanted = 16 * limits.pixels + 4 * limits.bytes
    most = _ROOM + min(wanted, _memory_limit() or wanted)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


_memory_limit = functools.cache(environment.memory_limit)


# Between the processes


class _Link:
    """Messages on a socket: a few facts and bytes."""

    def __init__(self, end: socket.socket):
        self._socket = end
        self._reader = end.makefile("rb")  # buffered: most messages take one call of the system

    def send(self, facts: dict[str, Any], parts: Sequence[Any], timeout: float | None = None) -> None:
        self._socket.settimeout(timeout)
        text = json.dumps(facts).encode()
        length = sum(map(len, parts))
        head = _HEAD.pack(len(text), length) + text
        # One call of the system where little is to be sent, no copy where it is much.
        for part in [b"".join((head, *parts))] if length < 2**18 else [head, *parts]:
            self._socket.sendall(part)

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], bytearray]:
        """Facts and bytes.

        Raises:
          EOFError: the other end is closed.
          OSError: likewise, or nothing comes for too long (TimeoutError).
        """
        self._socket.settimeout(timeout)
        text, length = _HEAD.unpack(self._exactly(_HEAD.size))
        return json.loads(self._exactly(text)), self._exactly(length)

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        if self._reader.readinto(data) < length:
            raise EOFError
        return data

    def close(self) -> None:
        self._reader.close()
        self._socket.close()
