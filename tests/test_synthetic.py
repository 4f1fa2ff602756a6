"""The synthetic films: reproducible, plausible, and with the class inside the lungs and nowhere else."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image
from scipy import ndimage

from covidjax.data import synthetic

COVID, CLEAR, PNEUMONIA = range(3)


@pytest.fixture(scope="module")
def films():
    return list(synthetic.draw_images(360, size=112))


def held_out_accuracy(features, films):
    """Accuracy of a linear classifier (ridge regression on one-hot labels), half of the patients held out."""
    labels = np.array([film.label for film in films])
    test = np.array([int(film.patient.rsplit("-", 1)[1]) // 3 % 2 == 1 for film in films])
    features = np.asarray(features, np.float64)
    features = (features - features[~test].mean(0)) / (features[~test].std(0) + 1e-6)
    features = np.hstack([features, np.ones((len(films), 1))])
    train = features[~test]
    gram = train.T @ train + 30 * np.eye(train.shape[1])
    weights = np.linalg.solve(gram, train.T @ np.eye(3)[labels[~test]])
    return float(np.mean((features[test] @ weights).argmax(1) == labels[test]))


def halves(lungs):
    """The two lung fields as masks, the patient's right lung (left on the film) first."""
    labelled: Any = ndimage.label(lungs)
    parts, count = labelled
    assert count == 2
    masks = [parts == 1, parts == 2]
    return sorted(masks, key=lambda mask: np.nonzero(mask)[1].mean())


def zones(film):
    """Mean grey of 2 lungs x 4 levels, less the darkest zone, relative to the tissue around the lungs."""
    means = []
    for mask in halves(film.lungs):
        rows = np.nonzero(mask.any(1))[0]
        for band in np.array_split(rows, 4):
            means.append(film.image[band][mask[band]].mean())
    means = np.array(means)
    return (means - means.min()).reshape(2, 4) / film.image[~film.lungs].mean()


def opacity(index, label, size=112):
    """What the disease adds to one film: the film drawn with `label` less the same film drawn clear."""
    number = index // 6 * 3 + index % 3
    ill, lungs = synthetic._draw_labelled(number, index, label, 0, size)
    clear, same_lungs = synthetic._draw_labelled(number, index, CLEAR, 0, size)
    assert np.array_equal(lungs, same_lungs)
    return ill.astype(int) - clear, lungs


def test_shapes_types_and_order():
    for size in (32, 101, 224):
        film = synthetic.draw(4, size=size)
        assert film.image.shape == film.lungs.shape == (size, size)
        assert film.image.dtype == np.uint8 and film.lungs.dtype == bool
        assert film.label == 1 and film.patient == "phantom-0-00001"
    assert synthetic.CLASSES == ("COVID-19", "No-Findings", "Pneumonia")


def test_same_bytes_whatever_the_order():
    forwards = list(synthetic.draw_images(12, seed=3, size=64))
    backwards = [synthetic.draw(index, seed=3, size=64) for index in reversed(range(12))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one.image.tobytes() == other.image.tobytes() and one.lungs.tobytes() == other.lungs.tobytes()
        assert one[2:] == other[2:]


def test_seeds_give_other_films_and_other_patients():
    ours, theirs = (list(synthetic.draw_images(6, seed=seed, size=64)) for seed in (0, 1))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))
    assert not {film.patient for film in ours} & {film.patient for film in theirs}


def test_classes_balance_and_patients_come_in_pairs(films):
    assert Counter(film.label for film in films) == {0: 120, 1: 120, 2: 120}
    assert set(Counter(film.patient for film in films).values()) == {2}
    labels = {}
    for film in films:
        assert labels.setdefault(film.patient, film.label) == film.label
    assert films[0].patient == films[3].patient != films[6].patient
    assert not np.array_equal(films[0].image, films[3].image)


def test_films_of_one_patient_share_anatomy(films):
    def area_ratio(film):
        right, left = halves(film.lungs)
        return right.sum() / left.sum()

    ratios = np.array([area_ratio(film) for film in films]).reshape(-1, 2, 3)
    assert np.abs(ratios[:, 0] - ratios[:, 1]).mean() < 0.3 * np.abs(ratios[:-1, 0] - ratios[1:, 1]).mean()


def test_lungs_are_two_plausible_fields_inside_the_frame(films):
    larger_right = []
    for film in films:
        right, left = halves(film.lungs)
        assert 0.07 < left.mean() < 0.25 and 0.09 < right.mean() < 0.27
        larger_right.append(right.sum() > left.sum())
        edge = np.concatenate([film.lungs[0], film.lungs[-1], film.lungs[:, 0], film.lungs[:, -1]])
        assert not edge.any()
    assert np.mean(larger_right) > 0.9


def test_lungs_are_darker_than_the_mediastinum(films):
    for film in films:
        right, left = (np.nonzero(mask)[1] for mask in halves(film.lungs))
        middle = slice((int(right.mean()) + int(left.mean())) // 2 - 4, (int(right.mean()) + int(left.mean())) // 2 + 4)
        assert film.image[film.lungs].mean() < film.image[40:90, middle].mean() - 15


def test_exposure_varies_and_films_are_not_saturated(films):
    means = np.array([film.image.mean() for film in films])
    assert means.std() > 12
    assert max(np.mean(film.image == 255) for film in films) < 0.25


@pytest.mark.parametrize("label", [COVID, PNEUMONIA])
def test_disease_changes_nothing_outside_the_lungs(label):
    for index in range(12):
        added, lungs = opacity(index, label)
        assert not added[~lungs].any()
        assert added[lungs].mean() > 2


def test_covid_is_bilateral_peripheral_and_low_and_pneumonia_is_one_sided():
    for index in range(24):
        shares = {}
        for label in (COVID, PNEUMONIA):
            added, lungs = opacity(index, label)
            right, left = (added * mask for mask in halves(lungs))
            shares[label] = min(right.sum(), left.sum()) / added.sum()
            if label == COVID:
                rows, columns = np.nonzero(lungs)
                low = added[int(rows.mean()) :].sum() / added.sum()
                middle = np.mean([np.nonzero(mask)[1].mean() for mask in halves(lungs)])
                distance = np.abs(np.arange(added.shape[1]) - middle)
                assert low > 0.6
                assert (added.sum(0) * distance).sum() / added.sum() > np.abs(columns - middle).mean()
        assert shares[COVID] > 0.2 and shares[PNEUMONIA] < 0.02


def test_lung_zones_tell_the_classes(films):
    features = []
    for film in films:
        right, left = zones(film)
        features.append(np.r_[np.minimum(right, left), np.maximum(right, left), np.abs(right - left)])
    assert held_out_accuracy(features, films) > 0.85
    asymmetry = np.array([np.abs(np.subtract(*zones(film))).max() for film in films])
    labels = np.array([film.label for film in films])
    assert asymmetry[labels == PNEUMONIA].mean() > 1.5 * asymmetry[labels == COVID].mean()


def test_nothing_else_tells_the_classes(films):
    overall = [(film.image.mean(), film.image.std()) for film in films]
    assert held_out_accuracy(overall, films) < 0.6
    blanked = np.stack([np.where(film.lungs, 0, film.image) for film in films])
    coarse = blanked.reshape(len(films), 16, 7, 16, 7).mean((2, 4)).reshape(len(films), -1)
    assert held_out_accuracy(coarse, films) < 0.6


def test_command_writes_one_folder_per_class(tmp_path):
    result = run("sample", tmp_path / "data", "--images", 7, "--seed", 5, "--size", 48)
    assert result.exit_code == 0
    assert result.stdout == "" and "synthetic" in result.stderr
    files = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.png"))
    assert len(files) == 7
    assert "COVID-19/phantom-5-00000-00003.png" in files and "Pneumonia/phantom-5-00002-00005.png" in files
    with Image.open(tmp_path / "data" / "COVID-19" / "phantom-5-00003-00006.png") as png:
        assert png.mode == "L" and np.array_equal(np.asarray(png), synthetic.draw(6, seed=5, size=48).image)


@pytest.mark.parametrize(
    ("index", "options", "name"),
    [
        (-1, {}, "index"),
        (1.0, {}, "index"),
        (0, {"seed": -1}, "seed"),
        (0, {"size": 31}, "size"),
        (0, {"size": 224.0}, "size"),
        (0, {"size": True}, "size"),
    ],
)
def test_bad_arguments_are_named(index, options, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        synthetic.draw(index, **options)


def test_sample_checks_before_the_first_film():
    with pytest.raises(ValueError, match="count must be"):
        synthetic.draw_images(-1)
    with pytest.raises(ValueError, match="size must be"):
        synthetic.draw_images(6, size=16)
    assert list(synthetic.draw_images(0)) == []
