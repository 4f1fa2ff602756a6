"""Calibration for elsewhere, the generalisation gap, operating points and abstention, on predictions of known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from covidjax.errors import UsageError
from covidjax.trust import abstention, calibration, operating_points
from covidjax.trust.calibration import calibrate
from covidjax.trust.generalisation import generalisation_gap
from covidjax.trust.operating_points import Target
from covidjax.trust.predictions import PredictionTable

CLASSES = ("a", "b", "c")


def draw(
    images: int, *, sharpness: float = 1.0, signal: float = 2.0, seed: int = 0, per_patient: int = 1
) -> PredictionTable:
    """Predictions that are calibrated by the temperature ``sharpness``."""
    random = np.random.default_rng(seed)
    logits = signal * random.normal(size=(images, len(CLASSES)))
    probabilities = scipy.special.softmax(logits, -1)
    labels = (probabilities.cumsum(-1) < random.random((images, 1))).sum(-1)
    given = scipy.special.softmax(sharpness * logits, -1)
    names = [f"{seed}:{number}" for number in range(images)]
    patients = [f"{seed}:{number // per_patient}" for number in range(images)]
    return PredictionTable(CLASSES, labels, given, names, patients, [str(seed)] * images)


def test_calibrated_probabilities_are_the_softmax_of_logits_over_the_temperature():
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 5
    given = scipy.special.softmax(logits, -1)
    np.testing.assert_allclose(calibrate(given, 2.5), scipy.special.softmax(logits / 2.5, -1), rtol=1e-9)
    assert calibrate(given, 1.0) is given
    single = calibrate(given.astype(np.float32), 3.0)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.sum(-1), 1, atol=1e-6)
    assert (single.argmax(-1) == given.argmax(-1)).all()
    sure = calibrate(np.asarray([[1.0, 0.0, 0.0]]), 2.0)
    assert np.isfinite(sure).all()
    assert np.isnan(calibrate(np.asarray([[np.nan, 0.5, 0.5]]), 2.0)).all()


def test_temperature_is_that_of_the_predictions():
    tables = [draw(4000, sharpness=3, seed=seed) for seed in range(3)]
    assert calibration.fit(tables) == pytest.approx(3, rel=0.1)

    def loss(temperature: float) -> float:  # Guo et al. 2017, written out
        logits = np.log(tables[0].probabilities) / temperature
        return float(-scipy.special.log_softmax(logits, -1)[np.arange(4000), tables[0].labels].mean())

    reference = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert calibration.fit(tables[:1]) == pytest.approx(reference, rel=1e-3)


def test_sources_count_the_same_whatever_their_size():
    few, many = draw(300, sharpness=6, seed=0), draw(3000, sharpness=1, seed=1)
    often = PredictionTable.concatenate([few] * 10)
    assert calibration.fit([few, many]) == pytest.approx(calibration.fit([often, many]), rel=1e-3)
    assert calibration.fit([few, many]) > 1.2 * calibration.fit([PredictionTable.concatenate([few, many])])


def test_worse_than_chance_is_the_greatest_temperature():
    table = draw(300, sharpness=2)
    wrong = replace(table, labels=(table.predictions + 1) % 3)
    assert calibration.fit([wrong]) == pytest.approx(calibration.MOST, rel=1e-3)
    assert calibration.calibrate(wrong.probabilities, calibration.MOST).max() < 0.4


def test_nested_figures_know_nothing_of_their_source():
    left_out = {name: draw(2000, sharpness=sharpness, seed=seed) for seed, (name, sharpness) in enumerate(
        [("x", 2.0), ("y", 2.0), ("z", 6.0)])}  # fmt: skip
    found = calibration.section(left_out, {"x": draw(2000, sharpness=1, seed=9)}, "runs/loso")
    sources = found["elsewhere"]["sources"]
    assert sources["z"]["temperature"] == pytest.approx(2, rel=0.1)
    assert sources["x"]["temperature"] == calibration.fit([left_out["y"], left_out["z"]])
    assert found["temperature"] == calibration.fit(list(left_out.values()))
    assert sources["z"]["ece"] < sources["z"]["raw_ece"]
    assert found["elsewhere"]["ece"] == pytest.approx(np.mean([source["ece"] for source in sources.values()]))
    home = found["in_source"]
    assert home["temperature"] == pytest.approx(1, rel=0.1)
    assert home["elsewhere_ece"] > home["ece"]
    assert calibration.temperature_of({"calibration": found}) == found["temperature"]
    assert calibration.temperature_of({}) == 1
    alone = calibration.section({"x": left_out["x"]}, {}, "run")
    assert (alone["elsewhere"]["sources"]["x"]["temperature"], alone["in_source"]) == (1.0, None)


def test_gap_is_that_of_the_metrics_and_its_interval_covers_it():
    home = {name: draw(400, signal=4, seed=seed, per_patient=2) for seed, name in enumerate("xyz")}
    away = {name: draw(400, signal=1, seed=10 + seed, per_patient=2) for seed, name in enumerate("xyz")}
    found = generalisation_gap(away, home)
    for name, figures in found["sources"].items():
        accuracy = [(table[name].predictions == table[name].labels).mean() for table in (away, home)]
        assert (figures["accuracy"]["left_out"], figures["accuracy"]["in_source"]) == pytest.approx(accuracy)
        assert figures["accuracy"]["gap"] == pytest.approx(accuracy[1] - accuracy[0])
    low, high = found["mean"]["accuracy"]["interval"]
    assert 0 < low < found["mean"]["accuracy"]["gap"] < high
    assert found["mean"]["accuracy"]["gap"] == pytest.approx(
        np.mean([source["accuracy"]["gap"] for source in found["sources"].values()])
    )
    from sklearn.metrics import f1_score, roc_auc_score

    f1 = f1_score(away["x"].labels, away["x"].predictions, average="macro")
    auroc = roc_auc_score(away["x"].labels, away["x"].probabilities, multi_class="ovr")
    assert found["sources"]["x"]["f1"]["left_out"] == pytest.approx(f1)
    assert found["sources"]["x"]["auroc"]["left_out"] == pytest.approx(auroc)
    nothing = generalisation_gap(home, home)["mean"]
    assert {figure["gap"] for figure in nothing.values()} == {0}
    assert nothing["accuracy"]["interval"] == (0, 0)


def test_gap_of_a_source_with_one_class_leaves_out_what_is_not_defined():
    home, one = draw(300, seed=0), draw(300, seed=1)
    one = one.select(one.labels == 1)
    found = generalisation_gap({"x": one, "y": draw(300, seed=2)}, {"x": home, "y": draw(300, seed=3)})
    assert found["sources"]["x"]["auroc"]["gap"] is None
    assert found["sources"]["x"]["accuracy"]["gap"] is not None
    assert found["mean"]["auroc"]["gap"] == found["sources"]["y"]["auroc"]["gap"]
    # F1 is compared on the one class that the source has.
    called, true = home.predictions == 1, home.labels == 1
    assert found["sources"]["x"]["f1"]["in_source"] == pytest.approx(
        2 * (called & true).sum() / (called.sum() + true.sum())
    )
    assert generalisation_gap({"x": one}, {})["sources"] == {}


@pytest.mark.parametrize("metric", operating_points.METRICS)
@pytest.mark.parametrize("value", [0.5, 0.9, 0.95, 1.0])
def test_threshold_reaches_the_target_and_gives_away_no_more(metric: str, value: float):
    table, target = draw(500, seed=3), Target("b", metric, value)
    limit = operating_points.threshold(table, target)
    figures = operating_points.figures(table, "b", np.full(len(table), limit))
    assert figures[metric]["value"] >= value
    # One step further and it is missed.
    probabilities = np.unique(table.probabilities[:, 1])
    further = (
        probabilities[probabilities > limit][:1] + 1e-12
        if metric == "sensitivity"
        else probabilities[probabilities < limit][-1:]
    )
    missed = operating_points.figures(table, "b", np.full(len(table), further[0]))[metric]["value"]
    assert missed < value
    other = "specificity" if metric == "sensitivity" else "sensitivity"
    low, high = figures[other]["interval"]
    assert low <= figures[other]["value"] <= high


def test_figures_of_an_operating_point():
    probabilities = np.asarray([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    table = PredictionTable(("a", "b"), np.asarray([0, 1, 0, 1, 1]), probabilities, *(["p", "q", "r", "s", "t"],) * 3)
    found = operating_points.figures(table, "a", np.full(5, 0.5))
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(
        {"sensitivity": 1 / 2, "specificity": 1 / 3, "ppv": 1 / 3, "npv": 1 / 2}
    )
    nothing = operating_points.figures(table.select(table.labels == 1), "a", np.full(3, 0.95))
    assert nothing["sensitivity"] == {"value": None, "interval": None}
    assert nothing["ppv"]["value"] is None
    assert nothing["specificity"]["value"] == 1


def test_thresholds_of_a_cross_validation_are_each_networks_own():
    tables = {"fold0": draw(200, seed=4), "fold1": draw(200, seed=5, sharpness=2)}
    without = {**tables, "fold2": tables["fold0"].select(tables["fold0"].labels != 0)}
    pooled = PredictionTable.concatenate(list(tables.values()))
    (point,) = operating_points.section([Target("a", "sensitivity", 0.9)], without, pooled)
    own = {name: operating_points.threshold(table, Target("a", "sensitivity", 0.9)) for name, table in tables.items()}
    assert point["by_holdout"] == {**own, "fold2": None}
    assert not point["few"]
    assert point["validation"]["sensitivity"]["value"] >= 0.9
    names = ["fold0"] * 200 + ["fold1"] * 200
    (applied,) = operating_points.applied([point], pooled, names)
    assert all(figure >= 0.9 for figure in [applied["figures"]["sensitivity"]["value"]])
    (few,) = operating_points.section([Target("a", "sensitivity", 0.99)], {"": tables["fold0"]}, tables["fold0"])
    assert few["few"]
    assert few["by_holdout"] == {}
    assert operating_points.thresholds_of({"operating_points": [few]}) == {"a": few["threshold"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "is written as"),
        ("a:sensitivity", "is written as"),
        ("d:sensitivity=0.9", "no class d"),
        ("a:recall=0.9", "sensitivity or a specificity"),
        ("a:sensitivity=much", "no share"),
        ("a:sensitivity=0", "no share"),
        ("a:sensitivity=nan", "no share"),
        ("a:specificity=95", "no share"),
    ],
)
def test_operating_points_that_are_none(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        operating_points.parse([text], CLASSES)


def test_operating_points_are_one_a_class():
    assert operating_points.parse(["A:Sensitivity=0.9", "b:specificity=1"], CLASSES) == [
        Target("a", "sensitivity", 0.9),
        Target("b", "specificity", 1.0),
    ]
    assert operating_points.parse(["x:y:sensitivity=0.5"], ["x:y"]) == [Target("x:y", "sensitivity", 0.5)]
    with pytest.raises(UsageError, match="already"):
        operating_points.parse(["a:sensitivity=0.9", "a:specificity=0.9"], CLASSES)
    with pytest.raises(UsageError, match="no image of b"):
        operating_points.threshold(draw(50).select(draw(50).labels != 1), Target("b", "sensitivity", 0.9))


def test_risk_of_the_accepted_is_at_most_what_is_asked_for():
    left_out = {"x": draw(3000, seed=0), "y": draw(500, seed=1)}
    curve = abstention.section(left_out, "runs/loso")
    assert curve["risk"] == sorted(curve["risk"])
    assert curve["coverage"] == sorted(curve["coverage"])
    assert curve["coverage"][-1] == pytest.approx(1)
    weights = {"x": 1 / 3000, "y": 1 / 500}
    for risk in (0.05, 0.1, 0.2):
        chosen = abstention.Abstention({"risk_coverage": curve}, risk, "run")
        parts = [
            (weights[name] * accepted, table.predictions != table.labels)
            for name, table in left_out.items()
            for accepted in [table.probabilities.max(-1) >= chosen.least_confidence]
        ]
        share = sum((weight * wrong).sum() for weight, wrong in parts) / sum(weight.sum() for weight, _ in parts)
        assert 0.7 * risk < share <= risk
        assert f"{chosen.least_confidence:.3f}" in chosen.sentence
    everything = abstention.Abstention({"risk_coverage": curve}, 0.99, "run")
    assert everything.least_confidence == min(table.probabilities.max(-1).min() for table in left_out.values())


def test_abstention_that_cannot_be():
    table = draw(300)
    wrong = replace(table, labels=(table.predictions + 1) % 3)
    all_wrong = abstention.Abstention({"risk_coverage": abstention.section({"x": wrong}, "run")}, 0.1, "run")
    assert all_wrong.least_confidence == float("inf")
    assert all_wrong.sentence.startswith("Every answer is uncertain")
    with pytest.raises(UsageError, match=r"--cv --by source.*train\.calibration"):
        abstention.Abstention({}, 0.1, "run")
    for risk in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="share of errors"):
            abstention.Abstention({}, risk, "run")
