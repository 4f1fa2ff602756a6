"""What is installed, which devices there are, what is wrong, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import locale
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs

from covidjax import environment
from covidjax.errors import UserError, one_line
from covidjax_cli import process

_EXTRAS = {
    "pyarrow": ("no Parquet output", "parquet"),
    "openvino": ("scoring on CPUs is slower without it", "openvino"),
    "onnxruntime": ("scoring on CPUs is slower without it or openvino", "onnxruntime"),
    "jax2onnx": ("openvino and onnxruntime are not used without it", "openvino"),
}

_VOLTA_CUDNN = "9.10.2.21"

LEAST_MEMORY = 2 * 2**30
"""Bytes with which training works by the default settings, whose peak is 1.4 GiB."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    state: Literal["ok", "note", "wrong"]
    what: str
    detail: str
    remedy: str = ""
    """The command that mends it; empty where nothing is wrong."""


def version_of(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """Look at everything; never raises for what it finds."""
    return [*_packages(), *_devices(), *machine(), *_variables(), *_text(), *_places()]


def _required() -> list[str]:
    """The packages that covidjax cannot do without."""
    try:
        requirements = importlib.metadata.requires("covidjax") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from its source
        requirements = []
    # What stands behind a semicolon makes it optional.
    return ["jaxlib", *(re.split(r"[^\w-]", text)[0] for text in requirements if ";" not in text)]


def _packages() -> list[Finding]:
    findings = [Finding("ok", "python", f"{sys.version.split()[0]}, covidjax {version_of('covidjax')}")]
    for package in (*_required(), *_EXTRAS):
        version = version_of(package)
        if version:
            findings.append(Finding("ok", package, version))
        elif package in _EXTRAS:
            meaning, extra = _EXTRAS[package]
            findings.append(Finding("note", package, f"not installed: {meaning}", f"pip install 'covidjax[{extra}]'"))
        else:
            findings.append(Finding("wrong", package, "not installed", "pip install --force-reinstall covidjax"))
    jax, jaxlib = version_of("jax"), version_of("jaxlib")
    if jax and jaxlib and jax != jaxlib:
        findings.append(Finding("wrong", "jax", f"jax {jax} with jaxlib {jaxlib}", f"pip install jaxlib=={jax}"))
    return findings


def _devices() -> list[Finding]:
    cards = _nvidia_cards()
    try:
        import jax

        from covidjax import device

        device.start()
        devices = jax.devices()
    except UserError as error:  # a variable of the environment
        detail, _, remedy = str(error).rpartition("; ")
        return [Finding("wrong", "devices", detail, remedy.rstrip("."))]
    except Exception as error:  # a broken installation can fail in any way, and telling how is this module's work
        if isinstance(error, ValueError) and (name := process.refused_variable(error)):
            return [Finding("wrong", "devices", f"jax does not take {name}={os.environ.get(name)}", f"unset {name}")]
        detail = f"jax finds none: {one_line(error)}"
        return [Finding("wrong", "devices", detail, "pip install --force-reinstall jax jaxlib")]
    findings = []
    for installed in devices[:1] if devices[0].platform == "cpu" else devices:  # a CPU is as many devices as cores
        if installed.platform == "cpu":
            findings.append(Finding("ok", "device", f"CPU, {environment.cores()} cores, float32"))
            continue
        capability = getattr(installed, "compute_capability", "?")
        dtype, scaled = device.precision("auto", installed)
        name = getattr(dtype, "__name__", str(dtype)) + " with loss scaling" * scaled
        findings.append(Finding("ok", "device", f"{installed.device_kind}, compute capability {capability}, {name}"))
    has_gpu = any(installed.platform == "gpu" for installed in devices)
    for name, capability in cards:
        findings += check_card(name, capability, has_gpu, version_of("nvidia-cudnn-cu12"), version_of("jax-cuda13-plugin"))
    if not cards and not has_gpu:
        findings.append(Finding("note", "GPU", "none on this machine; everything works on the CPU, only slower"))
    return findings


def check_card(name: str, capability: float, usable: bool, cudnn: str | None, cuda13: str | None) -> list[Finding]:
    """What stands between a card and jax.

    Args:
      name: of the card.
      capability: its compute capability, such as 7.0 for a V100.
      usable: whether jax finds a GPU.
      cudnn: version of nvidia-cudnn-cu12, or None.
      cuda13: version of jax-cuda13-plugin, or None.
    """
    volta = capability < 7.5
    if volta and cuda13:
        detail = f"CUDA 13 needs compute capability 7.5; this card has {capability}"
        remedy = "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt && pip install 'covidjax[v100]'"
    elif volta and cudnn and tuple(map(int, cudnn.split(".")[:2])) >= (9, 11):
        detail = f"cuDNN {cudnn} needs compute capability 7.5; this card has {capability}"
        remedy = f"pip install nvidia-cudnn-cu12=={_VOLTA_CUDNN}"
    elif not usable:
        detail = "there, but jax was installed without CUDA"
        remedy = f"pip install 'covidjax[{'v100' if volta else 'cuda12'}]'"
    else:
        return []
    return [Finding("wrong", name, detail, remedy)]


def _nvidia_cards() -> list[tuple[str, float]]:
    """(name, compute capability) of every card the driver knows, whether or not jax can use it."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        return [(name.strip(), float(capability)) for name, capability in (line.rsplit(",", 1) for line in lines)]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def machine(proc: Path = environment.PROC) -> list[Finding]:
    """Cores and memory, and what limits them.

    Args:
      proc: where the system describes this process.
    """
    cores, quota, limit = environment.cores(proc), environment.core_quota(proc), environment.memory_limit(proc)
    affinity, total = len(os.sched_getaffinity(0)), environment.machine_memory()
    detail = f"{cores} of {os.cpu_count()}"
    if affinity < (os.cpu_count() or affinity):
        detail += f", by the affinity of {affinity}"
    if quota is not None:
        detail += f", by the control group's quota of {quota:g}"
    memory = f"{total / 2**30:.1f} GiB" if limit is None else f"{limit / 2**30:.1f} GiB, the control group's limit"
    low = limit is not None and limit < LEAST_MEMORY
    remedy = f"raise the limit to {LEAST_MEMORY / 2**30:.0f} GiB, or use fewer --workers" if low else ""
    return [Finding("ok", "cores", detail), Finding("note" if low else "ok", "memory", memory, remedy)]


def _variables() -> list[Finding]:
    """Variables of the environment that have to do with the work."""
    findings = []
    for name, value in sorted(process.set_aside.items()):
        detail = f"{value}: commands do not follow it, their results come from their options and settings alone"
        findings.append(Finding("note", name, detail))
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        if value := os.environ.get(name):
            findings.append(Finding("ok", name, f"{value}: jax follows it"))
    if value := os.environ.get("MPLBACKEND"):
        findings.append(Finding("ok", "MPLBACKEND", f"{value}: figures are files, and need no backend"))
    telemetry = "off: ONNX Runtime's by ORT_DISABLE_TELEMETRY, OpenVINO's package for it is not imported"
    return [*findings, Finding("ok", "telemetry", telemetry)]


def _text() -> list[Finding]:
    """Encodings, and the standard streams."""
    shown, of_locale = str(sys.stdout.encoding).lower(), locale.getencoding()
    findings = [Finding("ok", "encoding", f"files and their names UTF-8, output {shown}, locale {of_locale}")]
    if "utf" not in shown:
        remedy = "export PYTHONIOENCODING=utf-8"
        findings[0] = Finding("note", "encoding", findings[0].detail + "; other characters are shown as ?", remedy)
    if process.closed_streams:
        detail = f"{', '.join(process.closed_streams)} closed; /dev/null stands in"
        findings.append(Finding("note", "streams", detail))
    return findings


def _places() -> list[Finding]:
    cache = platformdirs.user_cache_path("covidjax")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        remedy = "export XDG_CACHE_HOME=/a/folder/you/may/write/to"
        return [Finding("wrong", "cache", f"{cache} cannot be written ({error.strerror})", remedy)]
    free = shutil.disk_usage(cache).free / 2**30
    if free < 1:
        return [Finding("wrong", "cache", f"{cache}: only {free:.1f} GiB free", f"rm -r {cache}")]
    return [Finding("ok", "cache", f"{cache}, {free:.0f} GiB free")]
