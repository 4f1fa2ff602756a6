"""One run for all tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import TINY, run


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run("train", "--data", prepared, "--epochs", 1, "--run", out, *TINY).exit_code == 0
    return out
