"""The contenders: covidjax itself (``ours``), and what others would use for the same work."""

from __future__ import annotations

from typing import Any

from bench.harness import Entry


def pytorch_entries(
    factory: str, common: dict[str, Any], precisions: tuple[str, ...], compiled: tuple[str, ...]
) -> list[Entry]:
    """Every variant of PyTorch: eager in both layouts and compiled (in the modes given), in each precision."""
    variants = (("eager", False), ("eager", True), *((mode, True) for mode in compiled))
    return [pytorch_entry(factory, common, precision, *variant) for precision in precisions for variant in variants]


def pytorch_entry(factory: str, common: dict[str, Any], precision: str, how: str, channels_last: bool) -> Entry:
    """One variant of PyTorch: ``how`` is ``eager``, ``graph`` (a CUDA graph) or a mode of ``torch.compile``."""
    compiled = "" if how in ("eager", "graph") else how
    way = "compiled" + f" ({how})" * (how != "default") if compiled else how
    name = f"PyTorch {precision}, {way}" + ", channels-last" * channels_last
    options = {"precision": precision, "channels_last": channels_last, "compiled": compiled, "graphed": how == "graph"}
    return Entry(name, f"bench.peers.pytorch:{factory}", common | options)
