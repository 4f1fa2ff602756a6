"""What one check of an audit found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Status = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    title: str
    status: Status
    sentence: str
    """The finding, in plain words."""
    details: dict[str, Any] = field(default_factory=dict)
    """Its figures, as JSON takes them."""
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """Captions and uint8 ``[H, W]`` or ``[H, W, 3]``."""

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures."""
        return {key: getattr(self, key) for key in ("name", "title", "status", "sentence", "details")}
