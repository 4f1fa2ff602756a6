"""Fits the weights of ``covidjax.images.polarity`` to all films below folders; prints how they do on other patients.

``python -m bench.polarity FOLDER...``
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from covidjax.data.readers.names import patient_of
from covidjax.images import decode, polarity
from covidjax.images.find import walk


def fit(positives: np.ndarray) -> np.ndarray:
    """Weights float32 ``[F]`` that tell the rows of ``[N, F]`` from their negatives."""
    inputs, labels = np.concatenate([positives, -positives]), np.repeat([1, 0], len(positives))
    model = LogisticRegression(C=1e-2, fit_intercept=False, max_iter=1000).fit(inputs, labels)
    return model.coef_[0].astype(np.float32)


def main(folders: list[str]) -> None:
    """Print the scores of five folds by patient, and write the weights of all films into the package."""
    paths = [path for folder in folders for path in walk(Path(folder)).images]
    films = [Image.fromarray(decode.read(path, at_least=4 * polarity.SIDE)) for path in paths]
    values = np.stack([polarity.features(film) for film in films])
    scores = np.zeros(len(values))
    for train, test in GroupKFold(5).split(values, groups=[patient_of(path.name) for path in paths]):
        scores[test] = values[test] @ fit(values[train])
    unsure, lowest = (scores < polarity.SURE).sum(), ", ".join(f"{value:.2f}" for value in np.sort(scores)[:5])
    print(f"{len(scores)} films: {(scores < 0).sum()} taken for negatives, {unsure} unsure, lowest scores {lowest}")
    save_file({"weights": fit(values)}, polarity.WEIGHTS)
    print(f"wrote {polarity.WEIGHTS.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
