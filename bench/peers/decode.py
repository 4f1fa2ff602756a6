"""Only decoding: covidjax's own decoder and as many workers, and nothing else. What a machine can decode, no scoring can
outrun. Run as a script; its last line on stdout is a JSON object with the seconds of the loop."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

from bench.machine import cores
from covidjax.config import Preprocess
from covidjax.images import stream

PREPROCESS = Preprocess()


def decoded(path: str) -> bool:
    """Whether a file could be decoded; a process's work."""
    return stream.read_image(path, PREPROCESS).image is not None


def decode(folder: Path, how: str, size: int) -> dict[str, float]:
    """Decode every film of a folder, by the library's own loader or by a pool of processes that keep what they decode."""
    global PREPROCESS
    PREPROCESS = Preprocess(image_size=size)
    paths = sorted(map(os.fspath, folder.iterdir()))
    start = time.perf_counter()
    if how == "loader":
        done = sum(film.image is not None for film in stream.read_images(paths, PREPROCESS))
    else:
        with multiprocessing.get_context("fork").Pool(cores()) as pool:
            done = sum(pool.imap(decoded, paths, chunksize=8))
    return {"images": done, "loop": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(decode(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
