from __future__ import annotations

import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import device


class Fake:
    """A device as jax describes it."""

    device_kind = "fake"

    def __init__(self, platform: str, compute_capability: str | None = None, memory: int | None = None):
        self.platform = platform
        if compute_capability:
            self.compute_capability = compute_capability
        self._memory = memory

    def memory_stats(self) -> dict[str, int] | None:
        return None if self._memory is None else {"bytes_limit": self._memory}


@pytest.mark.parametrize(
    ("where", "dtype", "scaled"),
    [
        (Fake("cpu"), jnp.float32, False),
        (Fake("gpu", "6.1"), jnp.float32, False),
        (Fake("gpu", "7.0"), jnp.float16, True),  # V100
        (Fake("gpu", "7.5"), jnp.float16, True),  # T4
        (Fake("gpu", "8.0"), jnp.bfloat16, False),  # A100
        (Fake("gpu", "9.0"), jnp.bfloat16, False),  # H100
        (Fake("gpu", "12.0"), jnp.bfloat16, False),
    ],
)
def test_automatic_precision(where: Fake, dtype: Any, scaled: bool):
    assert device.precision("auto", where) == (dtype, scaled)


def test_precision_that_was_asked_for():
    assert device.precision("float16", Fake("cpu")) == (jnp.float16, True)
    assert device.precision("float32", Fake("gpu", "9.0")) == (jnp.float32, False)


def test_images_fit_in_a_quarter_of_the_memory():
    card = Fake("gpu", "7.0", memory=16 * 2**30)
    assert device.fits_in_memory(4 * 2**30, card)
    assert not device.fits_in_memory(4 * 2**30 + 1, card)
    assert device.fits_in_memory(1, Fake("cpu"))
    assert not device.fits_in_memory(2**60, Fake("cpu"))


def test_compiled_programs_that_were_cut_off_are_removed(tmp_path):
    whole = zlib.compress(bytes(1000))
    (tmp_path / "jit_a-1-cache").write_bytes(whole)
    (tmp_path / "jit_b-2-cache").write_bytes(whole[:-5])
    (tmp_path / "jit_c-3-cache").write_bytes(b"")
    device._drop_cut_off(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"jit_a-1-cache"}
    (tmp_path / "jit_a-1-cache").write_bytes(whole[:-5])
    os.utime(tmp_path / "jit_a-1-cache", (0, 0))  # each is looked at once only
    (tmp_path / "jit_d-4-cache").write_bytes(whole[:-5])
    device._drop_cut_off(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"jit_a-1-cache"}
    device._drop_cut_off(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_arrays_that_lie_where_they_should_are_not_put_there_again():
    one, two = device.mesh(1), device.mesh(8)
    placed = device.replicate({"a": np.ones(3, np.float32), "b": jnp.zeros(2)}, one)
    assert device.replicate(placed, one) is placed
    assert all(leaf.sharding.mesh == one for leaf in jax.tree.leaves(placed))
    if two.size > 1:
        moved = device.replicate(placed, two)
        assert moved is not placed
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(moved)} == {two.size}
        np.testing.assert_array_equal(moved["a"], np.ones(3))
    mixed = {"a": placed["a"], "b": np.zeros(2)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(device.replicate(mixed, one)))
