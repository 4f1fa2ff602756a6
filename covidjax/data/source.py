"""Random access to the records of a prepared dataset."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

Example: Any = vars(tf_example_pb2)["Example"]  # protobuf makes the class when it is imported; no type checker knows it


class Source:
    """Random access to the records of some files; may be used by several threads at once.

    TFDS's own data source would decode every feature of every record in Python, which takes longer than reading it.

    Attributes:
      shape: of every image, ``[S, S, 1]``.
      masks: whether there is a lung mask for every image.
    """

    def __init__(self, files: Sequence[str], image_size: int, masks: bool):
        self.masks = masks
        self.shape = (image_size, image_size, 1)
        # Reading ahead is for sequential access. Several threads may share a reader.
        self._readers = [ArrayRecordReader(file, "readahead_buffer_size:0") for file in files]
        self._ends = list(itertools.accumulate(reader.num_records() for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, rows: np.ndarray, images: np.ndarray, labels: np.ndarray, masks: np.ndarray | None = None) -> None:
        """Write the images of some rows, uint8 ``[rows, S, S, 1]``, their labels ``[rows]`` and, where wanted, their masks,
        shaped as the images, into the given arrays."""
        for index, row in enumerate(rows.tolist()):
            features = self._features(row)
            images[index] = np.frombuffer(features["image"].bytes_list.value[0], np.uint8).reshape(self.shape)
            labels[index] = features["label"].int64_list.value[0]
            if masks is not None:
                masks[index] = np.frombuffer(features["mask"].bytes_list.value[0], np.uint8).reshape(self.shape)

    def label(self, row: int) -> int:
        """The label of a row."""
        return self._features(row)["label"].int64_list.value[0]

    def texts(self, row: int, *keys: str) -> tuple[str, ...]:
        """Some text features of a row."""
        features = self._features(row)
        return tuple(os.fsdecode(features[key].bytes_list.value[0]) for key in keys)

    def _features(self, row: int) -> Mapping[str, Any]:
        file = bisect.bisect_right(self._ends, row)
        reader = self._readers[file]
        # One at a time: its bytes stay in the processor's cache until they are copied, and reading several would wake
        # the reader's own threads, which costs twice the processor time.
        (record,) = reader.read([row - self._ends[file] + reader.num_records()])
        return Example.FromString(record).features.feature
