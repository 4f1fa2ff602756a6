"""Which device computes, in which precision, and where compiled programs are kept."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from covidjax import environment
from covidjax.errors import UserError, one_line

AXIS = "data"
"""The mesh axis over which batches are split."""

LEAST_SHARE = 4
"""Fewest images of a batch that are worth a device of their own."""

_FLAGS = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "disable_jit": False,
    "debug_nans": False,
    "debug_infs": False,
    "check_tracer_leaks": False,
    "debug_key_reuse": False,
    "legacy_prng_key": "allow",
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
    "transfer_guard": "allow",
    "no_tracing": False,
    "no_execution": False,
}
"""Flags of jax by which a user's own program is computed or checked otherwise, as covidjax needs them."""

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Device(Protocol):
    """What is used of a ``jax.Device``, which type checkers do not know as a type."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    def memory_stats(self) -> dict[str, int] | None: ...


def start(device: str = "auto") -> Device:
    """Choose the device and switch the persistent compilation cache on. To be called before any other use of jax.

    Args:
      device: ``auto`` (a GPU if jax finds one), ``cpu`` or ``gpu``.

    Raises:
      UserError: ``gpu`` where there is none, or a variable of the environment that names a device which is not there.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # its hints about TPUs and GPUs that are not there
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or platformdirs.user_cache_path("covidjax") / "xla")
    _drop_cut_off(cache)
    # What cannot be written there or read from it costs the time of compiling again, and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if os.environ.get("JAX_NUM_CPU_DEVICES", "0") == "0":  # with none jax does not start
        with contextlib.suppress(RuntimeError):  # raised where jax has been used already, which then has what it has
            jax.config.update("jax_num_cpu_devices", environment.cores())
    if environment.cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault("PJRT_NPROC", str(environment.cores()))  # threads of XLA, which knows no quota
    _keep_memory()
    first = _first_device()
    if device == "gpu" and first.platform != "gpu":
        raise UserError("There is no GPU that jax can use; run `covidjax doctor` to see why, or choose --device cpu.")
    return first


def _first_device() -> Device:
    try:
        return jax.devices()[0]
    # jax answers a device that is not there with errors of several kinds, one of them an assertion without words.
    except (RuntimeError, AssertionError) as error:
        name = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), None)
        if name is None:
            raise
        reason = f" ({one_line(error).partition(' (set JAX_')[0].rstrip('.')})" if str(error) else ""
        problem = f"{name}={os.environ[name]} names a device that jax does not find here{reason}"
        raise UserError(f"{problem}; set {name}=cpu, or unset it.") from error


@contextlib.contextmanager
def own_flags() -> Iterator[None]:
    """Computes as covidjax means it, whatever flags of jax the program that calls it has set for itself, such as 64 bits;
    those of the caller hold again after the block, or after the function that this decorates."""
    with contextlib.ExitStack() as stack:
        for name, value in _FLAGS.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def _drop_cut_off(cache: Path) -> None:
    """Remove the compiled programs that were cut off while they were written, by a full disk or a kill: jax never writes
    them again, so they would be compiled at every start. Each is looked at once."""
    mark, now = cache / "looked-at", time.time_ns()
    with contextlib.suppress(OSError):
        looked_at = mark.stat().st_mtime_ns if mark.exists() else 0
        for entry in cache.glob("*-cache"):
            if entry.stat().st_mtime_ns >= looked_at and _cut_off(entry.read_bytes()):
                entry.unlink()
        if cache.is_dir():
            mark.touch()
            os.utime(mark, ns=(now, now))


def _cut_off(program: bytes) -> bool:
    if not program.startswith(b"\x78"):  # not zlib's; where zstandard is installed, jax uses that
        return not program
    try:
        zlib.decompress(program)
    except zlib.error:
        return True
    return False


def _keep_memory() -> None:
    """Have the C library keep the memory that is freed. By default it gives large blocks back, and every step gets them
    anew from the system, page by page and zeroed: a quarter of a training step on the CPU."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        arena_max, mmap_threshold, trim_threshold, top_pad = -8, -3, -1, -2  # their numbers in malloc.h
        mallopt(arena_max, 1)  # other arenas take what is large from the system whatever the threshold
        mallopt(mmap_threshold, 2**31 - 1)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def mesh(batch: int) -> Mesh:
    """The devices that share a batch of so many images evenly, at least 4 images each: one axis, ``data``. A CPU counts as
    one device a core: XLA splits a network's layers between cores less well than the batch."""
    devices = jax.devices()
    counts = range(len(devices), 1, -1)
    count = next((count for count in counts if not batch % count and batch >= LEAST_SHARE * count), 1)
    return Mesh(np.asarray(devices[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Any, where: Mesh) -> Any:
    """The arrays of a tree, whole on every device of a mesh; the tree itself where they lie there already, since putting a
    network's hundred arrays where they are takes longer than a GPU's forward pass."""
    sharding = NamedSharding(where, PartitionSpec())
    if all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, sharding)


def shard(function: Callable[..., Any], where: Mesh, *shares: PartitionSpec, result: PartitionSpec) -> Callable[..., Any]:
    """The function as every device of a mesh runs it on its share of the arguments; unchanged where there is one device."""
    if where.size == 1:
        return function
    return jax.shard_map(function, mesh=where, in_specs=shares, out_specs=result, check_vma=False)


def precision(choice: str, device: Device) -> tuple[DTypeLike, bool]:
    """The dtype of convolutions and activations, and whether the loss needs scaling.

    ``auto`` is float32 on a CPU, bfloat16 on GPUs from compute capability 8.0, and float16 with dynamic loss scaling
    on Volta and Turing, which have tensor cores for float16 alone.
    """
    if choice == "auto":
        stated = str(getattr(device, "compute_capability", ""))
        capability = float(stated) if stated.replace(".", "", 1).isdigit() else 0.0  # AMD's are names
        choice = "float32" if device.platform != "gpu" or capability < 7 else "float16" if capability < 8 else "bfloat16"
    return _DTYPES[choice], choice == "float16"


def fits_in_memory(size: int, device: Device) -> bool:
    """Whether ``size`` bytes of images may lie in the device's memory all the time: up to a quarter of it."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU: the images share the machine's memory with everything else
        limit = environment.free_memory()
    return size <= limit // 4


def device_name() -> str:
    """The device that computes, in words."""
    where = start()
    if where.platform != "cpu":
        return where.device_kind
    model = platform.machine()
    with contextlib.suppress(OSError):
        if name := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE):
            model = name[1]
    return f"{environment.cores()} cores of {model}"
