"""Which device computes, in which precision, and where compiled programs are kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import platformdirs
from jax.typing import DTypeLike

from covidjax.config import UserError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Device(Protocol):
    """What is used of a ``jax.Device``."""

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
      UserError: ``gpu`` where there is none.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # its hints about TPUs and GPUs that are not there
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or platformdirs.user_cache_path("covidjax") / "xla")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    found = jax.devices()[0]
    if device == "gpu" and found.platform != "gpu":
        raise UserError("There is no GPU that jax can use; run `covidjax doctor` to see why, or choose --device cpu.")
    return found


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


def fits(size: int, device: Device) -> bool:
    """Whether ``size`` bytes of images may lie in the device's memory all the time: up to a quarter of it."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU: the images share the machine's memory with everything else
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return size <= limit // 4
