"""What a classifier said of images that it was not trained on: the rows of ``predictions.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from covidjax import files
from covidjax.errors import UserError, one_line

FILE = "predictions.csv"
COLUMNS = ("path", "patient", "source", "label", "prediction")
"""Before a column ``p_<class>`` for each class."""


@dataclass(frozen=True)
class PredictionTable:
    """Probabilities of held-out images whose true class is known."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """int ``[N]``, true classes."""
    probabilities: np.ndarray
    """float ``[N, classes]``, each row adding up to 1."""
    paths: Sequence[str]
    """Names of the images as the dataset or the scored table has them, ``[N]``."""
    patients: Sequence[str]
    """Keys of the patients, ``[N]``; an image whose patient is not known is a patient of its own."""
    sources: Sequence[str]
    """The collection that each image is of, ``[N]``; empty where that is not known."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predictions(self) -> np.ndarray:
        """int ``[N]``, the classes of the greatest probability."""
        return self.probabilities.argmax(-1)

    def select(self, rows: np.ndarray) -> PredictionTable:
        """Some of the rows, by number or by a bool ``[N]``."""
        chosen = np.arange(len(self))[rows]
        numbers: list[int] = chosen.tolist()
        texts = ([values[row] for row in numbers] for values in (self.paths, self.patients, self.sources))
        return PredictionTable(self.classes, self.labels[chosen], self.probabilities[chosen], *texts)

    @classmethod
    def concatenate(cls, tables: Sequence[PredictionTable]) -> PredictionTable:
        """The rows of at least one table, one after another."""
        labels, probabilities = (
            np.concatenate([getattr(table, name) for table in tables]) for name in ("labels", "probabilities")
        )
        names = ("paths", "patients", "sources")
        texts = {name: [text for table in tables for text in getattr(table, name)] for name in names}
        return cls(tables[0].classes, labels, probabilities, **texts)

    def with_probabilities(self, probabilities: np.ndarray) -> PredictionTable:
        """The same images with other probabilities ``[N, classes]``."""
        return replace(self, probabilities=probabilities)

    def write(self, path: Path) -> None:
        """Write as CSV, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *(f"p_{name}" for name in self.classes)])
        names = np.asarray(self.classes)
        rows = zip(self.paths, self.patients, self.sources, names[self.labels], names[self.predictions], strict=True)
        for row, probabilities in zip(rows, self.probabilities, strict=True):
            # In full, so that whoever ranks them gets the same figures.
            writer.writerow([*row, *(repr(float(value)) for value in probabilities)])
        files.write_atomic(path, text.getvalue())

    @classmethod
    def read(cls, path: Path) -> PredictionTable:
        """Read what ``write`` wrote.

        Raises:
          UserError: no such file, or a damaged one.
        """
        try:
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                reader = csv.DictReader(file)
                columns = reader.fieldnames or ()
                classes = tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))
                rows = list(reader)
            return cls(
                classes,
                np.asarray([classes.index(row["label"]) for row in rows], np.int32),
                np.asarray([[row[f"p_{name}"] for name in classes] for row in rows], float).reshape(-1, len(classes)),
                *([row[name] for row in rows] for name in ("path", "patient", "source")),
            )
        except FileNotFoundError:
            raise UserError(f"{path} is not there; train the run again, or name another one.") from None
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"{path} is damaged ({one_line(error)}); train the run again, or name another one.") from error


Tables = Mapping[str, PredictionTable]
"""Predictions of each source by a network that was trained without it; or of a network's own sources, by the source that
was left out."""
