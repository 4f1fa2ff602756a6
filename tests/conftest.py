"""What several test files share: synthetic images, a dataset prepared from them, and the way to the real ones."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from covidjax.data import synthetic

# The same examples every time: a run fails by what was changed, not by what was drawn.
settings.register_profile("reproducible", derandomize=True, database=None)
settings.load_profile("reproducible")

# Two devices, also where there is one core and whichever test is the first to use jax.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

# As inference.runtimes has it: a test that imports openvino itself would start its telemetry, which forks, and whether JAX
# warns of that depends on the order of the tests.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session", autouse=True)
def converted_elsewhere(tmp_path_factory):
    """Converted networks and features of the tests do not push a user's own out of the cache."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("covidjax.training.features.cache_folder", lambda: folder / "features")
        patch.setattr("covidjax.inference.onnx.cache_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def patient_key_elsewhere(tmp_path_factory):
    """The key that patients' numbers are hashed with in tests is not the user's own, in other processes neither."""
    folder = tmp_path_factory.mktemp("data-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder / "covidjax" / "patient.key"


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder with one subfolder a class and ten PNG files of 64 × 64 pixels, of five patients, in each."""
    folder = tmp_path_factory.mktemp("collection") / "films"
    synthetic.write_images(folder, 30, size=64)
    return folder


@pytest.fixture(scope="session")
def prepared(films, tmp_path_factory):
    """A dataset of 32 × 32 pixels in three folds, made from `films`."""
    from covidjax.config import Preprocess  # here: they take seconds to import, and not every test wants them
    from covidjax.data.prepare import Options, prepare

    out = tmp_path_factory.mktemp("dataset") / "prepared"
    prepare([films], out, Options(Preprocess(image_size=32), folds=3))
    return out


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """A run of two epochs on `prepared`, with its report; tests copy it before they change it."""
    from commands import TINY, run

    out = tmp_path_factory.mktemp("runs") / "run"
    result = run("train", "--model", "darkcovidnet", "--data", prepared, "--epochs", 2, "--run", out, *TINY)
    assert result.exit_code == 0, result.output
    for text in (
        "precision",
        "recall",
        "F1",
        "Confusion matrix",
        "Timing",
        "compile",
        "train",
        "evaluate",
        "95 % interval",
    ):
        assert text in result.stdout
    assert "epoch 2/2: train loss" in result.stderr
    return out


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real films beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real films are wanted in {folder}, which is missing")
    return folder


@pytest.fixture(scope="session")
def shared_cases(shared_data):
    """The folder of small inputs on which an earlier version was wrong, beside that of real films."""
    return shared_data.parent / "cases"


@pytest.fixture
def write_films():
    """A function that writes small films of noise, no two alike, under the given names below a folder."""
    number = itertools.count()

    def write(folder, *names):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(next(number)).integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(noise).save(path)
        return folder

    return write


@pytest.fixture
def edit_manifest():
    """A function that changes keys of a dataset's manifest."""

    def edit(dataset, **changes):
        file = dataset / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit
