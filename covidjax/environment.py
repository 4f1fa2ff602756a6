"""What this process may use of its machine: cores and memory, by its affinity and by the limits of its control groups,
which is how containers and schedulers give a part of a machine away."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")
"""Where the system describes this process."""


def cores(proc: Path = PROC) -> int:
    """Cores that this process may keep busy: those of its affinity, or as many as its quota of their time amounts to."""
    affinity = len(os.sched_getaffinity(0))
    quota = core_quota(proc)
    return affinity if quota is None else max(min(affinity, math.ceil(quota)), 1)


def core_quota(proc: Path = PROC) -> float | None:
    """The least quota of cores among this process's control group and those that it lies in; None where there is none."""
    quotas = []
    for folder, version in _groups("cpu", proc):
        with contextlib.suppress(OSError, ValueError):
            if version == 2:
                quota, period = map(float, (folder / "cpu.max").read_text().split())  # "max" is no number
            else:
                quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0 and period > 0:  # -1: none
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(proc: Path = PROC) -> int | None:
    """The least limit of memory in bytes, likewise; None where there is none, or none below the machine's memory."""
    limits = []
    for folder, version in _groups("memory", proc):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
    limit = min(limits, default=None)
    return None if limit is None or limit >= machine_memory() else limit


def machine_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes that nothing uses, and at most those that this process may have."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return min(free, memory_limit() or free)


def _groups(controller: str, proc: Path) -> Iterator[tuple[Path, int]]:
    """The folder of this process's control group and of each that it lies in, as far as they can be seen from here, and
    the version (1 or 2) of the interface."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except (OSError, ValueError):  # another system than Linux, or one that hides it
        return
    for mount in mounts:
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        if kind != "cgroup2" and not (kind == "cgroup" and controller in options):
            continue
        # Version 2 has one hierarchy, whose line names no controller.
        wanted = "" if kind == "cgroup2" else controller
        path = next((path for _, names, path in groups if wanted in names.split(",")), "/")
        root, point = Path(mount[3]), Path(mount[4])
        # In a container the group may be named from outside of what is mounted there.
        folder = point / Path(path).relative_to(root) if Path(path).is_relative_to(root) else point
        version = 2 if kind == "cgroup2" else 1
        yield from ((group, version) for group in (folder, *folder.parents) if group.is_relative_to(point))
