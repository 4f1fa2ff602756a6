"""Loaders: films from plain files in order, batches of a dataset, and the order of an epoch."""

import re
import shutil
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from covidjax.config import Preprocess
from covidjax.data import loader
from covidjax.data.dataset import Dataset, Source
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.errors import UserError
from covidjax.images import decode, stream

SMALL = Preprocess(image_size=32)


class Numbered(Source):
    """A source whose record i shows i in every pixel and has label i % 3."""

    shape = (2, 2, 1)
    masks = False

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, rows, images, labels, masks=None):
        assert all(0 <= row < self.count for row in rows)
        images[:] = rows[:, None, None, None]
        labels[:] = rows % 3

    def texts(self, row, *keys):
        return tuple(f"file:{row}" if key == "patient" and row % 2 else f"{key} {row}" for key in keys)


def shown(batch):
    assert batch.images.dtype == np.uint8
    assert batch.labels.dtype == np.int32
    return batch.images[:, 0, 0, 0].tolist()


def unreadable(read):
    with pytest.raises(UserError) as caught:
        read()
    return re.fullmatch(r"A record of the dataset cannot be read \(.*\); prepare it again\.", str(caught.value))


@pytest.mark.parametrize("workers", [1, 4, None])
def test_films_come_in_order_with_errors_in_their_place(films, tmp_path, workers):
    text = tmp_path / "text.png"
    text.write_text("no image")
    good = sorted(films.glob("*/*.png"))
    paths = [good[5], tmp_path / "missing.png", good[0], text, str(good[9]), tmp_path, good[0]]
    found = list(stream.read_images(paths, SMALL, workers=workers))
    assert [film.path for film in found] == [str(path) for path in paths]
    assert [film.error for film in found] == [
        "",
        "no such file",
        "",
        "not an image in a known format (DICOM, PNG, JPEG, JPEG-LS, JPEG 2000, BMP, TIFF, WebP, GIF, PNM)",
        "",
        "this is a folder, not an image",
        "",
    ]
    for row, path in ((0, good[5]), (2, good[0]), (4, good[9]), (6, good[0])):
        np.testing.assert_array_equal(found[row].image, decode.resize(decode.read(path), 32)[..., None])
        assert found[row].sha256 == sha256(path.read_bytes()).hexdigest()
    assert [film.image is None for film in found] == [False, True, False, True, False, True, False]
    assert [film.sha256 for film in found][1::2] == ["", sha256(b"no image").hexdigest(), ""]
    assert all(film.decode_seconds > 0 for film in found)


def test_film_is_what_radiograph_makes_of_it(films):
    path = next(films.glob("Pneumonia/*.png"))
    film = stream.read_image(path, Preprocess(image_size=48))
    assert film.image is not None
    assert film.image.shape == (48, 48, 1)
    np.testing.assert_array_equal(film.image[..., 0], decode.resize(decode.read(path), 48))


def test_no_paths_give_no_films():
    assert list(stream.read_images([], SMALL)) == []


def test_films_are_not_all_read_ahead(monkeypatch):
    opened, lock = [], threading.Lock()

    def open_image(path, preprocess, **_):
        with lock:
            opened.append(path)
        return stream.LoadedImage(path=path)

    monkeypatch.setattr(stream, "read_image", open_image)
    paths = [str(number) for number in range(1000)]
    found = stream.read_images(paths, SMALL, workers=2)
    assert next(found).path == "0"
    time.sleep(0.3)  # long enough to have read them all
    assert len(opened) < 100
    assert [film.path for film in found] == paths[1:]
    assert sorted(opened, key=int) == paths


def test_workers_left_out_are_as_many_as_the_cores():
    assert stream.workers_or_default(3) == 3
    assert stream.workers_or_default(None) >= 1


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(10, 3, 3), (12, 3, 4), (5, 32, 1), (7, 7, 1), (8, 7, 1)])
def test_order_is_a_permutation_without_the_incomplete_batch(count, batch_size, steps):
    rows = loader.epoch_rows(count, batch_size, seed=0, epoch=0)
    assert rows.shape == (steps, min(batch_size, count))
    assert rows.dtype == np.int32
    assert len(set(rows.ravel().tolist())) == rows.size
    assert set(rows.ravel().tolist()) <= set(range(count))


def test_order_differs_by_epoch_and_seed_and_is_the_same_again():
    first = loader.epoch_rows(100, 10, seed=0, epoch=0).tolist()
    assert first == loader.epoch_rows(100, 10, seed=0, epoch=0).tolist()
    others = [loader.epoch_rows(100, 10, seed=seed, epoch=epoch).tolist() for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    assert all(first != other for other in others)
    assert others[0] != others[1]


def test_rows_left_out_of_an_epoch_change_with_the_epoch():
    left_out = {tuple(set(range(10)) - set(loader.epoch_rows(10, 3, seed=0, epoch=epoch).ravel())) for epoch in range(20)}
    assert len(left_out) > 3


def test_train_batches_are_the_rows_that_order_gave():
    steps = loader.epoch_rows(20, 6, seed=4, epoch=2)
    batches = list(loader.train_batches(Numbered(20), steps))
    assert [shown(batch) for batch in batches] == steps.tolist()
    assert [batch.labels.tolist() for batch in batches] == (steps % 3).tolist()
    assert [batch.count for batch in batches] == [6, 6, 6]


def test_train_batches_of_a_dataset_equal_direct_indexing(prepared):
    source = Dataset(prepared).source([0, 2])
    everything = loader.load_all(source)
    steps = loader.epoch_rows(len(source), 4, seed=0, epoch=0)
    batches = list(loader.train_batches(source, steps))
    assert len(batches) == len(steps)
    for batch, rows in zip(batches, steps, strict=True):
        np.testing.assert_array_equal(batch.images, everything.images[rows])
        np.testing.assert_array_equal(batch.labels, everything.labels[rows])


def test_records_are_what_tfds_decodes(prepared):
    source = Dataset(prepared).source([2, 0])
    builder: Any = tfds.builder_from_directory(prepared)
    expected = [record for split in ("fold2", "fold0") for record in builder.as_data_source(split)]
    assert len(source) == len(expected)
    rows = np.random.default_rng(0).permutation(len(source))
    batch = next(loader.train_batches(source, rows[None]))
    np.testing.assert_array_equal(batch.images, np.stack([expected[row]["image"] for row in rows]))
    np.testing.assert_array_equal(batch.labels, [expected[row]["label"] for row in rows])
    for row, record in enumerate(expected):
        texts = tuple(record[key].decode() for key in ("name", "sha256", "patient"))
        assert source.texts(row, "name", "sha256", "patient") == texts


def test_record_of_another_size_is_not_stretched_to_fit(tmp_path):
    with create_dataset(tmp_path / "out", Preprocess(image_size=32), 2) as writer:
        for fold in (0, 1):
            for label in SMALL.classes:
                writer.add(fold, Example(Path("n"), label, "p", "s"), np.zeros((32, 32, 1), np.uint8), "0")
        writer.close()
    dataset = Dataset(tmp_path / "out")
    dataset.preprocess = Preprocess(image_size=48)
    assert unreadable(lambda: list(loader.eval_batches(dataset.source([1]), 2)))


def test_damaged_record_is_a_user_error(prepared, tmp_path):
    damaged = Path(shutil.copytree(prepared, tmp_path / "damaged"))
    file = next(damaged.glob("*fold1.array_record*"))
    source = Dataset(damaged).source([0, 1])
    pixels = loader.load_all(Dataset(damaged).source([1])).images[3].tobytes()
    content = bytearray(file.read_bytes())
    # Not compressed, so the pixels are found as they are; a part of them, as the format writes in blocks.
    at = content.index(pixels[500:600])
    content[at] ^= 1
    file.write_bytes(content)
    for read in (
        lambda: list(loader.train_batches(source, np.arange(len(source))[None])),
        lambda: list(loader.eval_batches(source, 4)),
        lambda: loader.load_all(source),
        lambda: loader.identities(source),
    ):
        assert unreadable(read)


def test_eval_batches_hold_every_record_once_and_pad_the_last():
    batches = list(loader.eval_batches(Numbered(7), 3))
    assert [shown(batch) for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 0, 0]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2], [0, 1, 2], [0, 0, 0]]
    assert [batch.count for batch in batches] == [3, 3, 1]


@pytest.mark.parametrize(("count", "batch_size", "real"), [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (2, 5, [2]), (0, 5, [])])
def test_eval_batches_have_one_size(count, batch_size, real):
    batches = list(loader.eval_batches(Numbered(count), batch_size))
    assert [batch.count for batch in batches] == real
    assert {batch.images.shape for batch in batches} <= {(min(batch_size, count), 2, 2, 1)}


def test_film_is_known_by_its_digest_and_by_a_patient_that_is_no_mere_file():
    assert loader.identities(Numbered(3)) == [("sha256 0", "patient 0"), ("sha256 1",), ("sha256 2", "patient 2")]


def test_load_all_gives_every_record_in_order(prepared):
    batch = loader.load_all(Numbered(5))
    assert shown(batch) == [0, 1, 2, 3, 4]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1]
    assert batch.count == 5
    dataset = Dataset(prepared)
    real = loader.load_all(dataset.source([0, 1, 2]))
    assert real.images.shape == (30, 32, 32, 1)
    assert np.bincount(real.labels).tolist() == [10, 10, 10]


def test_load_all_of_nothing_is_a_user_error():
    with pytest.raises(UserError, match="the chosen folds hold no image"):
        loader.load_all(Numbered(0))
