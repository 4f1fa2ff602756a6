"""The contenders: covidjax itself (``ours``), and what others would use for the same work."""

from __future__ import annotations

from typing import Any

from bench.harness import Entry


def pytorch_entries(
    factory: str, common: dict[str, Any], precisions: tuple[str, ...], compiled: tuple[str, ...]
) -> list[Entry]:
    """Every variant of PyTorch: eager in both layouts and compiled (in the modes given), in each precision."""
    entries = []
    for precision in precisions:
        for mode, channels_last in (("", False), ("", True), *((mode, True) for mode in compiled)):
            how = "compiled" + f" ({mode})" * (mode != "default") if mode else "eager"
            name = f"PyTorch {precision}, {how}" + ", channels-last" * channels_last
            options = common | {"precision": precision, "channels_last": channels_last, "compiled": mode}
            entries.append(Entry(name, f"bench.peers.pytorch:{factory}", options))
    return entries
