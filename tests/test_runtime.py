"""Runtimes: the same probabilities from each, the cache of converted networks, and the choice between them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import refused, run

import covidjax
from covidjax.config import Preprocess
from covidjax.errors import UsageError, UserError
from covidjax.images import stream
from covidjax.inference import onnx as converter
from covidjax.inference import runtimes
from covidjax.runs import load
from covidjax.runs.load import load_run

OTHERS = ["openvino", "onnxruntime"]


def wanted(name: str) -> None:
    if not runtimes.is_installed(name):
        pytest.skip(f"{name} is not installed")


@pytest.fixture
def images(films: Path) -> np.ndarray:
    """Eight films of several classes, and noise of full contrast."""
    paths = sorted(films.rglob("*.png"))[::5][:6]
    read = [stream.read_image(path, Preprocess(image_size=32)).image for path in paths]
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    return np.concatenate([np.stack([image for image in read if image is not None]), noise])


@pytest.fixture(scope="module")
def settled(trained: Path, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run with batch statistics that have settled: after its few steps they are so far off that every film
    gets the same answer, and equal answers would say nothing."""
    import jax
    import jax.numpy as jnp

    from covidjax.inference.forward import normalize
    from covidjax.models import Weights
    from covidjax.runs import checkpoint
    from covidjax.runs.checkpoint import CheckpointWriter

    run_folder = tmp_path_factory.mktemp("settled") / "run"
    shutil.copytree(trained, run_folder)
    loaded = load_run(run_folder, "cpu")
    read = [stream.read_image(path, Preprocess(image_size=32)).image for path in sorted(films.rglob("*.png"))]
    seen = normalize(jnp.stack([image for image in read if image is not None]))
    apply = jax.jit(lambda stats: loaded.network.apply(Weights(loaded.weights.params, stats), seen, train=True)[2])
    stats = loaded.weights.batch_stats
    for _ in range(50):
        stats = apply(stats)
    checkpoints = CheckpointWriter(run_folder, "last", keep=1)
    step = checkpoint.steps(run_folder, "last")[-1] + 1
    checkpoints.save(step, Weights(loaded.weights.params, stats), {"nothing": np.zeros(1)}, {})
    checkpoints.close()
    return run_folder


@pytest.mark.parametrize("name", OTHERS)
def test_probabilities_are_those_of_jax(settled: Path, images: np.ndarray, name: str):
    wanted(name)
    expected = covidjax.load(settled, runtime="jax").probabilities(images)
    assert np.ptp(expected, axis=0).max() > 0.1
    classifier = covidjax.load(settled, runtime=name)
    for size in (8, 3, 8):
        np.testing.assert_allclose(classifier.probabilities(images[:size]), expected[:size], atol=1e-5)


def test_every_layer_becomes_one_operation(settled: Path):
    """Batch normalisation is folded, and channels stay where they are: otherwise the runtimes are several times slower."""
    wanted("onnxruntime")
    import onnx

    covidjax.load(settled, runtime="onnxruntime")
    newest = max(converter.cache_folder().glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    found = Counter(node.op_type for node in onnx.load_from_string(newest.read_bytes()[32:]).graph.node)
    assert (found["Conv"], found["MaxPool"], found["LeakyRelu"]) == (17, 5, 16)
    assert found["Transpose"] <= 3  # one of them of the features' small map
    assert sum(found.values()) < 60


def test_a_result_stays_what_it_was(settled: Path, images: np.ndarray):
    wanted("openvino")
    classifier = covidjax.load(settled, runtime="openvino")
    first = classifier.probabilities(images)
    before = first.copy()
    classifier.probabilities(images[::-1].copy())
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_those_of_jax(settled: Path, films: Path, tmp_path: Path, name: str):
    wanted(name)
    (tmp_path / "empty.png").touch()
    tables = []
    for each in ("jax", name):
        out = tmp_path / f"{each}.csv"
        result = run("score", films, tmp_path / "empty.png", "--checkpoint", settled, "--output", out, "--runtime", each)
        assert result.exit_code == 0, result.output
        tables.append([line.split(",") for line in out.read_text().splitlines()])
    expected, found = tables
    assert f"on {runtimes.TITLES[name]} " in result.stderr.splitlines()[0]
    assert len(found) == len(expected) == 32
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert one[:2] == other[:2]
        assert one[7] == other[7]
        if one[1] == "ok":
            np.testing.assert_allclose([float(cell) for cell in other[3:7]], [float(cell) for cell in one[3:7]], atol=1e-5)


@pytest.fixture
def converted(
    settled: Path,
    converted_elsewhere: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Path]:
    """The runs that are converted from here on; a cache of its own holds the one that is in use."""
    wanted("onnxruntime")
    covidjax.load(settled, runtime="onnxruntime")
    folder = tmp_path_factory.mktemp("cache")
    newest = max(converted_elsewhere.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    shutil.copy(newest, folder)
    monkeypatch.setattr(converter, "cache_folder", lambda: folder)
    made: list[Path] = []
    model = next(converter.cache_folder().glob("*.onnx")).read_bytes()[32:]

    def load_run(path: Path, _: str) -> Any:
        made.append(path)
        return SimpleNamespace(networks=[])

    monkeypatch.setattr(load, "load_run", load_run)
    monkeypatch.setattr(converter, "convert", lambda *_: model)
    return made


def test_the_converted_network_is_kept(settled: Path, images: np.ndarray, converted: list[Path]):
    covidjax.load(settled, runtime="onnxruntime").probabilities(images)
    assert converted == []


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_entry_is_made_anew(settled: Path, converted: list[Path], damage: str):
    (file,) = converter.cache_folder().glob("*.onnx")
    whole = bytearray(file.read_bytes())
    if damage == "bit":
        whole[len(whole) // 2] ^= 1
    file.write_bytes(whole[: {"cut": len(whole) // 2, "bit": len(whole), "empty": 0}[damage]])
    covidjax.load(settled, runtime="onnxruntime")
    assert converted == [settled]
    covidjax.load(settled, runtime="onnxruntime")
    assert converted == [settled]
    assert list(converter.cache_folder().iterdir()) == [file]


def test_other_weights_are_converted_of_themselves(settled: Path, tmp_path: Path, converted: list[Path]):
    other = tmp_path / "run"
    shutil.copytree(settled, other)
    step = max((other / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))
    file = max((step / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes() + b"0")
    seal = json.loads((step / "sha256.json").read_text())
    seal[str(file.relative_to(step))] = hashlib.sha256(file.read_bytes()).hexdigest()
    (step / "sha256.json").write_text(json.dumps(seal))
    covidjax.load(other, runtime="onnxruntime")
    assert converted == [other]


def test_only_so_many_are_kept(settled: Path, converted: list[Path], monkeypatch: pytest.MonkeyPatch):
    (file,) = converter.cache_folder().glob("*.onnx")
    old = [file.with_name(f"{number}.onnx") for number in range(3)]
    for number, each in enumerate(old):
        each.write_bytes(b"")
        os.utime(each, (number, number))
    monkeypatch.setattr(converter, "CACHED_MODELS", 2)
    file.unlink()
    covidjax.load(settled, runtime="onnxruntime")
    left = set(converter.cache_folder().iterdir())
    old[2].unlink()
    assert left == {file, old[2]}


def test_a_cache_that_cannot_be_written_stops_nothing(
    settled: Path,
    images: np.ndarray,
    converted: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(converter, "cache_folder", lambda: tmp_path / "file" / "models")
    classifier = covidjax.load(settled, runtime="onnxruntime")
    assert classifier.probabilities(images).shape == (8, 3)
    assert converted == [settled]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("openvino", "onnxruntime", "jax2onnx"), "openvino"),
        (("onnxruntime", "jax2onnx"), "onnxruntime"),
        (("openvino", "onnxruntime"), "jax"),
        ((), "jax"),
    ],
)
def test_auto_takes_the_first_that_is_installed(there: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "here" if name in there else None)
    assert runtimes.choose_runtime("auto", "cpu", "auto") == expected
    assert runtimes.choose_runtime("auto", "cpu", "float32") == expected


def test_auto_is_jax_on_a_gpu_and_in_another_precision(monkeypatch: pytest.MonkeyPatch):
    assert runtimes.choose_runtime("auto", "gpu", "auto") == "jax"
    assert runtimes.choose_runtime("auto", "cpu", "bfloat16") == "jax"
    assert runtimes.choose_runtime("auto", "cpu", "float32", tta=10) == "jax"
    monkeypatch.setattr(runtimes, "has_gpu", lambda: True)
    assert runtimes.choose_runtime("auto", "auto", "auto") == "jax"


def test_a_runtime_that_is_not_there_is_one_sentence(trained: Path, films: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused("score", films, "--checkpoint", trained, "--runtime", "openvino", code=1)
    assert message == "OpenVINO is not installed; run `pip install 'covidjax[openvino]'`, or choose --runtime auto."
    message = refused("score", films, "--checkpoint", trained, "--runtime", "onnxruntime", "--device", "gpu", code=2)
    assert message == "ONNX Runtime is used on CPUs only; choose --runtime jax, or another --device."
    with pytest.raises(UsageError, match=r"OpenVINO takes one view of an image, and the run has model\.tta 10; choose"):
        runtimes.choose_runtime("openvino", "cpu", "auto", tta=10)
    with pytest.raises(UsageError, match="There is no runtime 'tvm'; choose one of auto, jax, "):
        covidjax.load(trained, runtime="tvm")


def test_a_network_that_cannot_be_converted_is_one_sentence(trained: Path, monkeypatch: pytest.MonkeyPatch):
    wanted("onnxruntime")
    import jax2onnx

    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("no such\nprimitive")

    monkeypatch.setattr(jax2onnx, "to_onnx", fails)
    loaded = load_run(trained, "cpu")
    with pytest.raises(UserError, match=r"cannot be converted \(no such primitive\); choose --runtime jax\."):
        converter.convert(loaded.networks, loaded.run.config.model, loaded.run.preprocess)


def test_scoring_again_imports_no_jax_and_no_converter(
    settled: Path,
    films: Path,
    tmp_path: Path,
    converted_elsewhere: Path,
):
    """The command in a process of its own, where these packages break when they are imported."""
    wanted("openvino")
    covidjax.load(settled, runtime="openvino")
    banned = ("jax", "flax", "orbax", "grain", "jax2onnx", "onnxruntime", "openvino_telemetry", "scipy", "matplotlib")
    script = f"""
import sys
class Ban:
    def find_spec(self, name, *_):
        if name in {banned}: raise AssertionError("imported " + name)
import pathlib
from covidjax.inference import onnx, runtimes
from covidjax_cli.main import main
onnx.cache_folder = lambda: pathlib.Path({str(converted_elsewhere)!r})
runtimes.is_installed = lambda name: True
sys.meta_path.insert(0, Ban())
main(["score", {str(next(films.rglob("*.png")))!r}, "--checkpoint", {str(settled)!r}, "--device", "cpu", "--json"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on OpenVINO " in done.stderr.splitlines()[0]
