"""The machine that is measured on: folders, environment of child processes, processor, card and versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import platformdirs

from covidjax.environment import cores as usable_cores

ROOT = Path(__file__).parents[1]
COVIDJAX = (sys.executable, "-c", "from covidjax_cli.main import main; main()")
"""The command as it is started from a shell, also where it is not installed."""

PACKAGES = (
    *(
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "pillow",
        "tensorflow-datasets",
        "array-record",
    ),
    *("torch", "keras", "onnx", "onnxruntime", "openvino"),
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


def cache() -> Path:
    """The folder for images, datasets, weights and compiled programs; it may be deleted at any time."""
    folder = platformdirs.user_cache_path("covidjax") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(**more: str) -> dict[str, str]:
    """For a process: this checkout's code, and compiled programs kept where all benchmarks find them again."""
    paths = [str(ROOT), str(ROOT / "cli"), os.environ.get("PYTHONPATH", "")]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache() / "xla"), "TORCHINDUCTOR_CACHE_DIR": str(cache() / "inductor")}
    return os.environ | compiled | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def say(text: str) -> None:
    """Progress, on stderr."""
    click.echo(text, err=True)


def cores() -> int:
    """Cores that this process may use."""
    return usable_cores()


def machine() -> dict[str, Any]:
    """The processor, memory, card and system."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", info, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": cores(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in known],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def gpu_name() -> str:
    """The first NVIDIA card, or nothing."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if process.returncode == 0 and process.stdout.strip():
            return process.stdout.splitlines()[0].strip()
    return ""


def versions() -> dict[str, str]:
    """The versions of the installed packages that take part."""
    installed = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
