"""Writing a prepared dataset, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from covidjax.config import Preprocess
from covidjax.data.dataset import FORMAT, IMAGE_COLUMNS, IMAGES, MANIFEST, NAME, ORIGINAL, PERSON, TEXTS
from covidjax.data.readers.base import Example
from covidjax.data.readers.names import is_known
from covidjax.errors import UsageError, UserError, one_line
from covidjax.files import NO_SPACE, explaining, fsync, hidden_beside, lock, write_csv
from covidjax.images.facts import FileFacts


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """ArrayRecord's writer tells of a full disk by RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        full = (number for number in NO_SPACE if os.strerror(number) in str(error))
        raise OSError(next(full, None), one_line(error)) from error


def _template(folder: Path, fold: int) -> tfds.core.ShardedFileTemplate:
    data_dir, split = tfds.core.Path(folder), f"fold{fold}"
    return tfds.core.ShardedFileTemplate(data_dir=data_dir, dataset_name=NAME, split=split, filetype_suffix="array_record")


def _dataset_info(folder: Path, preprocess: Preprocess, masks: bool) -> tfds.core.DatasetInfo:
    # Raw bytes: the default encoding of a Tensor feature reads ten times slower.
    shape = (preprocess.image_size, preprocess.image_size, 1)
    pixels = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
    features = {
        "image": pixels,
        **({"mask": pixels} if masks else {}),
        "label": tfds.features.ClassLabel(names=list(preprocess.classes)),
        **{key: tfds.features.Text() for key in TEXTS},
    }
    version = tfds.core.Version(f"{FORMAT}.0.0")
    identity = tfds.core.DatasetIdentity(name=NAME, version=version, data_dir=str(folder), module_name="")
    features = tfds.features.FeaturesDict(features)
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="Chest X-rays for covidjax.")
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    return info


class Writer:
    """Writes records fold by fold and keeps the counts that the manifest states; with ``masks`` each record has one.

    It writes the folds' files itself: TFDS's own writer compresses every record (a fifth smaller, but three times slower to
    read) and rewrites the description of the dataset after each.
    """

    def __init__(self, folder: Path, preprocess: Preprocess, folds: int, masks: bool, segmenter: str):
        self._folder, self._preprocess = folder, preprocess
        self._masks, self._segmenter = masks, segmenter
        self._info = _dataset_info(folder, preprocess, masks)
        self._features: Any = self._info.features
        self._templates = [_template(folder, fold) for fold in range(folds)]
        paths = [os.fspath(template.sharded_filepath(shard_index=0, num_shards=1)) for template in self._templates]
        self._files = [ArrayRecordWriter(path, "group_size:1,uncompressed") for path in paths]
        self._bytes = [0] * folds
        self._classes = {label: Counter() for label in preprocess.classes}
        self._sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._patients: set[str] = set()
        self._known = 0
        self._rows: list[list[tuple[Any, ...]]] = [[] for _ in range(folds)]
        self._hash = hashlib.sha256(repr((FORMAT, preprocess, segmenter)).encode())

    def add(
        self,
        fold: int,
        example: Example,
        image: np.ndarray,
        sha256: str,
        mask: np.ndarray | None = None,
        original: FileFacts | None = None,
    ) -> None:
        """Append a record to a fold.

        Args:
          fold: its number.
          example: what is known of the image.
          image: uint8 ``[S, S, 1]``.
          sha256: of the original file.
          mask: uint8 ``[S, S, 1]`` of 0 and 1, in a dataset of images with lung masks.
          original: what the original file was.
        """
        texts = {**vars(example), "name": PurePath(example.written_path).name, "sha256": sha256}
        # Names may hold bytes that are no UTF-8; they are stored as the file system has them.
        features = {"image": image, "label": example.label, **{key: os.fsencode(texts[key]) for key in TEXTS}}
        if self._masks:
            features["mask"] = mask
        record = self._features.serialize_example(features)
        with _os_errors():
            self._files[fold].write(record)
        self._bytes[fold] += len(record)
        self._classes[example.label][fold] += 1
        self._sources[example.source][example.label] += 1
        self._patients.add(example.patient)
        self._known += is_known(example.patient)
        if original:
            facts = (getattr(original, column) for column in ORIGINAL)
            person = (getattr(example, column) or getattr(original, column) for column in PERSON)
            self._rows[fold].append((fold, example.source, texts["name"], sha256, *facts, *person))
        self._hash.update(f"{fold} {example.label} {sha256}\n".encode())
        if mask is not None:
            self._hash.update(mask.tobytes())

    def close(self, **facts: Any) -> dict[str, Any]:
        """Finish the files and write the manifest; ``facts`` are added to it. Returns the manifest.

        Raises:
          UserError: a class or a fold of which no image could be read.
        """
        per_fold = [{label: counts[fold] for label, counts in self._classes.items()} for fold in range(len(self._files))]
        per_class = {label: counts.total() for label, counts in self._classes.items()}
        for label, count in per_class.items():
            if not count:
                raise UserError(
                    f"No image of class {label} could be read; see the reasons with `covidjax score` on its folder."
                )
        for fold, counts in enumerate(per_fold):
            if not any(counts.values()):
                raise UserError(f"Of fold {fold} no image could be read; mend the files or use fewer --folds.")
        with _os_errors():
            for file in self._files:
                file.close()
        splits = [
            tfds.core.SplitInfo(
                name=f"fold{fold}",
                shard_lengths=[sum(counts.values())],
                num_bytes=self._bytes[fold],
                filename_template=self._templates[fold],
            )
            for fold, counts in enumerate(per_fold)
        ]
        self._info.set_splits(tfds.core.SplitDict(splits))
        self._info.write_to_directory(self._folder)
        if any(self._rows):
            write_csv(self._folder / IMAGES, IMAGE_COLUMNS, [row for rows in self._rows for row in rows])
        manifest = {
            "format": FORMAT,
            "covidjax": importlib.metadata.version("covidjax"),
            "fingerprint": self._hash.hexdigest(),
            **dataclasses.asdict(self._preprocess),
            "classes": list(self._preprocess.classes),
            "segmenter": self._segmenter,
            "masks": self._masks,
            "folds": len(self._files),
            "images": sum(per_class.values()),
            "patients": len(self._patients),
            "patients_known": self._known,
            "per_class": per_class,
            "per_fold": {f"fold{fold}": counts for fold, counts in enumerate(per_fold)},
            "per_source": {source: dict(counts) for source, counts in self._sources.items()},
            "bytes": {path.name: path.stat().st_size for path in sorted(self._folder.iterdir())},
            **facts,
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        return manifest


def refuse_existing(out: Path) -> None:
    """See that nothing is at ``out`` but perhaps an empty folder.

    Raises:
      UserError: something is.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out.absolute()} exists already; remove it or name another folder.")


@contextlib.contextmanager
def create_dataset(
    out: Path, preprocess: Preprocess, folds: int, *, masks: bool = False, segmenter: str = "", wait: bool = False
) -> Iterator[Writer]:
    """A writer whose dataset appears at ``out`` whole, when the block ends well, or not at all. The same records give the
    same bytes at any time.

    Args:
      out: the dataset's folder.
      preprocess: of its images.
      folds: how many it has.
      masks: whether every record has a mask.
      segmenter: digest of the weights that found the lungs.
      wait: for another process that is at the same dataset, rather than to fail.

    Raises:
      UserError: ``out`` exists already, is being written by another process, or cannot be written.
    """
    out = out.absolute()  # not resolved: a link stays what the user named
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{os.fsencode(out)!r} cannot be a dataset: its name is not UTF-8; choose another.") from None
    partial = hidden_beside(out, ".partial")
    busy = f"{out} is being prepared by another command; wait for it, or name another folder."
    with contextlib.ExitStack() as stack:
        with explaining(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(hidden_beside(out, ".lock"), busy, wait=wait))
            refuse_existing(out)
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
        with explaining(out):
            yield Writer(partial, preprocess, folds, masks, segmenter)
            for file in partial.iterdir():
                fsync(file)
            partial.rename(out)
