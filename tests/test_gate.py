"""The gate: what is refused and why, what a run accepts of its own kind, and the command with and without it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from covidjax.data import synthetic
from covidjax.errors import UserError
from covidjax.images.stream import LoadedImage
from covidjax.lungs.segmenter import Encoder
from covidjax.runs import load, trust_file
from covidjax.trust import gate, novelty
from covidjax.trust.gate import Gate, KindClassifier, RunFeatures
from covidjax.trust.novelty import Novelty

CHEST, HAND = np.eye(2, dtype=np.float32) * 4
"""Features of the fixed network, in a world of two kinds."""


@pytest.fixture
def two_kinds(monkeypatch: pytest.MonkeyPatch) -> KindClassifier:
    """A classifier that takes the first feature for a chest and the second for a hand."""
    eye, nothing = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    classifier = KindClassifier(eye, nothing, eye, nothing, eye, nothing, ["a chest", "a hand"], 0.6, "digest")
    monkeypatch.setattr(gate, "bundled", lambda: classifier)
    return classifier


class FixedNetwork:
    """Gives the features that the first pixel of each image stands for: 0 a chest, 1 a hand, 2 a foot."""

    size = 4

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.stack([CHEST, HAND, np.array([-9, 30], np.float32)])[images[:, 0, 0, 0]]


def image(kind: int, **facts: Any) -> LoadedImage:
    return LoadedImage(path="a", image=np.full((8, 8, 1), kind, np.uint8), **facts)


def features(rng: np.random.Generator, count: int, fixed: np.ndarray) -> RunFeatures:
    own = rng.normal(0, 1, (count, 6)).astype(np.float32)
    return RunFeatures(own, fixed + rng.normal(0, 0.1, (count, 2)).astype(np.float32))


def reasons(trust: Any, kinds: list[int], own: np.ndarray | None = None, **facts: Any) -> list[str]:
    images = [image(kind, **facts) for kind in kinds]
    seen = FixedNetwork()(np.stack([each.image for each in images if each.image is not None]))
    return Gate(trust, FixedNetwork()).refusals(images, seen, np.zeros((len(kinds), 6)) if own is None else own)


def test_what_is_no_chest_is_refused_with_what_it_looks_like(two_kinds: KindClassifier):
    assert reasons({}, [0, 1]) == ["", "no frontal chest X-ray: it looks like a hand"]
    assert reasons({}, [0], not_chest=True) == ["no frontal chest X-ray, by its header"]
    assert reasons({}, [0], whole_because="no lungs") == ["no frontal chest X-ray: no lungs"]
    assert reasons({}, [0], whole_because="one lung") == [""]


def test_a_run_of_hands_accepts_hands_alone(two_kinds: KindClassifier):
    rng = np.random.default_rng(0)
    section = json.loads(json.dumps(gate.fit(features(rng, 60, HAND), features(rng, 40, HAND))))
    assert section["refused"] == 1
    hand, chest, foot = reasons({"gate": section}, [1, 0, 2])
    assert hand == ""
    assert chest == foot == gate.UNLIKE
    assert reasons({"gate": section}, [1], not_chest=True) == [""]
    # Another classifier's weights say nothing of what is like what.
    assert reasons({"gate": section | {"classifier": "other"}}, [1])[0].endswith("a hand")


def test_a_run_of_hands_and_chests_accepts_both_and_no_feet(two_kinds: KindClassifier):
    rng = np.random.default_rng(1)
    mixed = np.stack([CHEST, HAND, HAND, CHEST, CHEST] * 20)
    section = gate.fit(features(rng, 100, mixed), features(rng, 100, mixed))
    assert section["refused"] == pytest.approx(0.4)
    chest, hand, foot = reasons({"gate": section}, [0, 1, 2])
    assert chest == hand == ""
    assert foot.startswith("no frontal chest X-ray")


def test_a_run_of_chests_has_no_kind_of_its_own(two_kinds: KindClassifier):
    rng = np.random.default_rng(2)
    section = gate.fit(features(rng, 100, CHEST), features(rng, 50, CHEST))
    assert "kind" not in section
    assert reasons({"gate": section}, [0, 1])[1].endswith("a hand")
    own = np.stack([np.zeros(6), np.full(6, 100)])
    assert reasons({"gate": section}, [0, 0], own) == ["", gate.UNLIKE]
    # Of several networks the mean counts: one that is used to anything does not outweigh the other.
    both = gate.merge([section, section])
    assert len(both["own"]) == 2
    assert reasons({"gate": both}, [0, 0], np.tile(own, 2)) == ["", gate.UNLIKE]


def test_a_damaged_section_is_told(two_kinds: KindClassifier):
    for section in ({"own": [{}]}, {"own": [{"mean": "?"}]}, {"own": 1}, []):
        with pytest.raises(UserError, match="section gate of the run's trust"):
            reasons({"gate": section}, [0])


def test_a_section_of_another_network_is_told(two_kinds: KindClassifier):
    own = np.random.default_rng(5).normal(size=(60, 8)).astype(np.float32)
    section = {"own": [gate.Novelty.fit(own, own, 2.0).as_dict()]}
    assert reasons({"gate": section}, [0], own[:1]) == [""]
    with pytest.raises(UserError, match="it is of another network"):
        reasons({"gate": section}, [0], own[:1, :7])


def test_novelty_is_one_for_training_images_and_grows_with_the_distance():
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1, (5, 40))
    data = (rng.normal(0, 1, (600, 5)) @ directions + rng.normal(0, 0.1, (600, 40)) + 7).astype(np.float32)
    fitted = Novelty.fit(data[:400], data[400:], 1.5)
    assert np.mean(fitted.distances(data[:400]) ** 2) == pytest.approx(1, abs=0.05)
    assert not fitted.is_unlike(data).any()
    mean = data.mean(0)
    beside = rng.normal(0, 1, 40)
    beside -= beside @ np.linalg.pinv(directions) @ directions  # in no direction that training images differ in
    for direction in (directions[0], beside):
        near, far = fitted.distances(np.stack([mean + direction, mean + 19 * direction]).astype(np.float32))
        assert near < far > fitted.threshold
    table = fitted.as_dict()
    again = Novelty.from_dict(json.loads(json.dumps(table)))
    np.testing.assert_array_equal(again.distances(data), fitted.distances(data))
    assert len(json.dumps(table)) < 10_000
    # What nearly all held-out images are within is told by many of them; of few, the margin is wider.
    few = Novelty.fit(data[:400], data[400:403], 1.5)
    assert few.threshold == pytest.approx(3 * np.quantile(few.distances(data[400:403]), novelty.QUANTILE), rel=1e-5)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A phantom, a page of stripes and a blank image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(synthetic.draw(3, size=64).image).save(folder / "a-phantom.png")
    Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(8), (128, 8))).save(folder / "b-stripes.png")
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(folder / "c-blank.png")
    return folder


def test_command_refuses_keeps_probabilities_and_counts(trained: Path, pictures: Path, tmp_path: Path):
    assert "gate" in load.trust(trained)
    result = run("score", pictures, "--checkpoint", trained, "--output", tmp_path / "on.csv", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["files"], told["ok"], told["refused"], told["errors"]) == (3, 1, 2, 0)
    assert "gate" in [stage["stage"] for stage in told["timing"]]
    phantom, stripes, blank = rows_of(tmp_path / "on.csv")
    assert (phantom["status"], phantom["warning"]) == ("ok", "")
    assert (stripes["status"], blank["status"]) == ("refused", "refused")
    assert stripes["warning"].startswith((gate.UNLIKE, "no frontal chest X-ray: it looks like "))
    assert blank["warning"].startswith("next to no contrast")
    off = run("score", pictures, "--checkpoint", trained, "--output", tmp_path / "off.csv", "--gate", "off", "--json")
    assert (json.loads(off.stdout)["ok"], json.loads(off.stdout)["refused"]) == (2, 1)
    for on, without in zip((phantom, stripes, blank), rows_of(tmp_path / "off.csv"), strict=True):
        probabilities = [name for name in on if name.startswith("p_")]
        assert [on[name] for name in probabilities] == [without[name] for name in probabilities]
        assert bool(on["prediction"]) == (on["status"] == "ok")
    assert refused("score", pictures, "--gate", "maybe", code=2)


def test_a_run_of_an_earlier_version_has_the_bundled_gate_alone(trained: Path, pictures: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "old")
    (tmp_path / "old" / trust_file.FILE).unlink()
    assert load.trust(tmp_path / "old") == {}
    result = run("score", pictures, "--checkpoint", tmp_path / "old", "--json")
    assert result.exit_code == 0, result.output
    phantom, stripes, _ = json.loads(result.stdout)["rows"]
    assert (phantom["status"], stripes["status"]) == ("refused", "refused")
    assert phantom["warning"] == "no frontal chest X-ray: it looks like a drawing"
    (tmp_path / "old" / trust_file.FILE).write_text('{"gate": {"own": [1]}}')
    assert "section gate of the run's trust.json is damaged" in refused(
        "score", pictures, "--checkpoint", tmp_path / "old", code=1
    )


def test_weights_that_are_damaged_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(gate, "WEIGHTS", tmp_path / "gate.safetensors")
    gate.bundled.cache_clear()
    for content in (None, b"", b"\x08\0\0\0\0\0\0\0{}"):
        if content is not None:
            gate.WEIGHTS.write_bytes(content)
        with pytest.raises(UserError, match=r"missing or damaged .*install covidjax again"):
            gate.bundled()
    gate.bundled.cache_clear()


def test_bundled_weights_fit_the_bundled_segmenter():
    classifier, encoder = gate.bundled(), Encoder("cpu", "jax")
    images = np.stack([synthetic.draw(index, size=encoder.size).image for index in range(2)])[..., None]
    probabilities = classifier.probabilities(encoder(images))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert classifier.kinds[0] == "a frontal chest X-ray"
    assert 0.2 < classifier.threshold < 0.95


# One in eleven of the images that bench.gate has, of every kind.


@pytest.mark.slow
def test_real_pictures(shared_data: Path, tmp_path: Path):
    """By the command, with the bundled classifier, which cuts out lungs."""
    (tmp_path / "in").mkdir()
    kinds = {kind: shared_data / "not-chest" / kind for kind in ("ct", "ct_mr_medpix", "hand", "knee", "lateral", "photo")}
    kinds |= {"chest": shared_data / "radiography-v4" / "Normal", "child": shared_data / "radiography" / "NORMAL"}
    for kind, folder in kinds.items():
        for number, path in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())[:440:11]):
            shutil.copy(path, tmp_path / "in" / f"{kind}-{number}{path.suffix}")
    for path in list((tmp_path / "in").glob("chest-*"))[:10]:
        Image.open(path).rotate(180).save(tmp_path / "in" / f"upside-{path.stem}.png")
        Image.fromarray(np.hstack([np.asarray(Image.open(path).convert("L"))] * 2)).save(
            tmp_path / "in" / f"two-{path.stem}.png"
        )
    result = run("score", tmp_path / "in", "--checkpoint", load.BUNDLED, "--output", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    share: dict[str, list[bool]] = {}
    for row in rows_of(tmp_path / "rows.csv"):
        share.setdefault(Path(row["path"]).name.split("-")[0], []).append(row["status"] == "refused")
    means = {kind: float(np.mean(answers)) for kind, answers in share.items()}
    assert max(means["chest"], means["child"]) <= 0.05
    assert min(means[kind] for kind in kinds if kind not in ("chest", "child")) >= 0.7
    assert np.mean([means[kind] for kind in kinds if kind not in ("chest", "child")]) >= 0.95
    assert min(means["upside"], means["two"]) >= 0.9
