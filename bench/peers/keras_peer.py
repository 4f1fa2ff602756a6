"""Keras 3 as a contender, as the study used Keras: a functional model, ``fit`` and ``predict``. The backend is chosen by
KERAS_BACKEND when Keras is imported, so each has a process of its own."""

from __future__ import annotations

from typing import Any

import keras  # pyright: ignore[reportMissingImports] - only the extra `peers` has it
import numpy as np

from bench.machine import cores
from bench.peers.arrays import UNITS, Arrays, at

if keras.backend.backend() == "torch":
    import torch

    torch.set_num_threads(cores())
    # PyTorch's own layout: channels-last is Keras's default, and slower there.
    keras.config.set_image_data_format("channels_first")


def build(size: int, channels: int, classes: int, weights: str) -> keras.Model:
    """DarkCovidNet from uint8 pixels to logits, holding the given weights."""
    stored = Arrays(weights)
    first = keras.config.image_data_format() == "channels_first"
    shape = (channels, size, size) if first else (size, size, channels)
    axis = 1 if first else -1
    inputs = keras.Input(shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / (255 * 0.25), offset=-2.0)(inputs)
    loads: list[tuple[Any, list[Any]]] = []

    def norm(x: Any, name: str) -> Any:
        params, stats = at(stored.params, name), at(stored.batch_stats, name)
        layer = keras.layers.BatchNormalization(axis=axis, momentum=0.9, epsilon=1e-5)
        loads.append((layer, [params["scale"], params["bias"], stats["mean"], stats["var"]]))
        return layer(x)

    def conv(x: Any, kernel: Any) -> Any:
        side, _, _, outputs = kernel.shape
        if side == 1:
            x = keras.layers.ZeroPadding2D(1)(x)
        layer = keras.layers.Conv2D(outputs, side, padding="same" if side == 3 else "valid", use_bias=False)
        loads.append((layer, [kernel]))
        return layer(x)

    for name in UNITS:
        if name.endswith("first") and name != "stage1/first":
            x = keras.layers.MaxPooling2D(2)(x)
        x = conv(x, at(stored.params, name)["conv"]["kernel"])
        x = keras.layers.LeakyReLU(negative_slope=0.1)(norm(x, f"{name}/norm"))
        if name.startswith("stem"):
            x = keras.layers.MaxPooling2D(2)(x)
    x = norm(keras.layers.ReLU()(conv(x, stored.params["score_map"]["kernel"])), "score_norm")
    dense = keras.layers.Dense(classes)
    loads.append((dense, [stored.params["dense"]["kernel"], stored.params["dense"]["bias"]]))
    model = keras.Model(inputs, dense(keras.layers.Flatten()(x)))
    for layer, values in loads:
        layer.set_weights(values)
    return model


class _Network:
    def __init__(self, batch: str, weights: str):
        with np.load(batch) as stored:
            pixels, self._labels = stored["images"], stored["labels"]
        self._model: Any = build(pixels.shape[1], pixels.shape[3], 3, weights)
        first = keras.config.image_data_format() == "channels_first"
        self._pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if first else pixels
        self.images = len(pixels)


class Train(_Network):
    """``fit``."""

    def __init__(self, *, first: int = 1, **options: Any):
        super().__init__(**options)
        self._first = first
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._model.compile(optimizer=keras.optimizers.Adam(1e-3, epsilon=1e-8), loss=loss)

    def run(self, calls: int) -> None:
        self._fit(np.tile(self._pixels, (calls, 1, 1, 1)), np.tile(self._labels, calls), 1)

    def _fit(self, pixels: np.ndarray, labels: np.ndarray, epochs: int) -> list[float]:
        history = self._model.fit(pixels, labels, batch_size=self.images, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    def answer(self) -> list[float]:
        """Mean loss of the first steps."""
        return [float(np.mean(self._fit(self._pixels, self._labels, self._first)))]


class Forward(_Network):
    """``predict``."""

    def run(self, calls: int) -> None:
        self._model.predict(np.tile(self._pixels, (calls, 1, 1, 1)), batch_size=self.images, verbose=0)

    def answer(self) -> list[float]:
        """Probabilities."""
        logits = self._model.predict(self._pixels, batch_size=self.images, verbose=0)
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.softmax(logits))).ravel().tolist()


def build_cnn13(size: int, params: Any) -> keras.Model:
    """CNN13 as one would write it in Keras from the study's words, from normalised images ``[B, size, size, C]`` to logits,
    holding the given parameters; without dropout, whose draws no two frameworks share."""
    kernels = [unit["conv"]["kernel"] for _, unit in sorted(params["units"].items(), key=lambda item: int(item[0]))]
    model = keras.Sequential([keras.Input((size, size, kernels[0].shape[2]))])
    for number, kernel in enumerate(kernels, 1):
        model.add(keras.layers.Conv2D(kernel.shape[3], 3, padding="same"))
        model.add(keras.layers.LeakyReLU(negative_slope=0.1))
        if number in (2, 4, 7, 10, 13):
            model.add(keras.layers.MaxPooling2D(2))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(params["dense"]["kernel"].shape[1]))
    model.set_weights([np.asarray(array) for array in cnn13_arrays(params)])
    return model


def cnn13_arrays(params: Any) -> list[Any]:
    """Parameters of CNN13, or their gradients, in the order in which Keras keeps them."""
    units = [unit for _, unit in sorted(params["units"].items(), key=lambda item: int(item[0]))]
    arrays = [array for unit in units for array in (unit["conv"]["kernel"], unit["bias"])]
    return [*arrays, params["dense"]["kernel"], params["dense"]["bias"]]
