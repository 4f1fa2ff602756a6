"""The gate: whether an image is a frontal X-ray of the chest, or of what a model was trained on, at all.

Four questions in turn: what the file's header says; whether the lung segmenter finds plausible lungs, where it looks for
them; what a bundled classifier makes of the pooled features of one fixed network, the segmenter's encoder, the same for all
runs; and how far the run's own features of the image are from those of its training images. An image that one of the first
three refuses is accepted all the same if the run was trained on images that they refuse too, and this one is like them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from covidjax.errors import UserError, one_line
from covidjax.images import decode
from covidjax.images.stream import LoadedImage
from covidjax.runs import trust_file, weights_file
from covidjax.runs.trust_file import Trust
from covidjax.trust.novelty import Novelty, product

WEIGHTS = weights_file.FOLDER / "gate.safetensors"
"""The classifier that the package carries; gate.md beside it says what it is."""

SECTION = "gate"
"""Of ``trust.json``."""

OWN_MARGIN, KIND_MARGIN = 2.0, 1.4
"""See ``Novelty.fit``: of a run's own features, which those of another hospital's X-rays are further from; and of what only
this run accepts."""

LEAST_SHARE, LEAST, LARGE_SHARE = 0.05, 10, 0.2
"""Least share and number of training images that the classifier refuses, from which on a run has a kind of its own: these
images, or all from a large share on, since the classifier is at odds with all of them then."""

ARRAYS = ("components", "components_bias", "hidden", "hidden_bias", "output", "output_bias")
"""Of the weights."""

NO_LUNGS = ("no lungs", "lungs too small")
"""Flags of ``lungs.geometry`` that no frontal X-ray of the collections has. One lung, white with fluid, is left to the
classifier."""

UNLIKE = "unlike all images that the model was trained on"


class Encoder(Protocol):
    """The fixed network."""

    size: int
    """Height and width N of its images in pixels."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B, N, N, 1]`` → features float32 ``[B, F]``."""
        ...


class KindClassifier(NamedTuple):
    """What an image shows, by features of the fixed network: their principal components, one hidden layer, a softmax."""

    components: np.ndarray
    """float32 ``[F, D]``."""
    components_bias: np.ndarray
    hidden: np.ndarray
    """float32 ``[D, H]``."""
    hidden_bias: np.ndarray
    output: np.ndarray
    """float32 ``[H, kinds]``; the first kind is a frontal X-ray of the chest."""
    output_bias: np.ndarray
    kinds: list[str]
    """In words."""
    threshold: float
    """An image is refused below this probability of the first kind."""
    digest: str
    """Of the weights, hexadecimal."""

    def project(self, features: np.ndarray) -> np.ndarray:
        """Features ``[N, F]`` → their components, float32 ``[N, D]``, of about deviation 1."""
        return product(features, self.components) + self.components_bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features ``[N, F]`` → float32 ``[N, kinds]``, each row adding up to 1."""
        hidden = np.maximum(product(self.project(features), self.hidden) + self.hidden_bias, 0)
        logits = product(hidden, self.output) + self.output_bias
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return odds / odds.sum(-1, keepdims=True)

    def refusals(self, features: np.ndarray) -> list[str]:
        """Why each image is refused, and what it looks like; empty for what may be a frontal X-ray of the chest."""
        probabilities = self.probabilities(features)
        names = sorted(set(self.kinds[1:]))
        by_name = np.stack([probabilities[:, [kind == name for kind in self.kinds]].sum(-1) for name in names], -1)
        return [
            f"no frontal chest X-ray: it looks like {names[likely]}" if chest < self.threshold else ""
            for chest, likely in zip(probabilities[:, 0], by_name.argmax(-1), strict=True)
        ]


@functools.cache
def bundled() -> KindClassifier:
    """The classifier that the package carries.

    Raises:
      UserError: it is missing or damaged.
    """
    import safetensors
    from safetensors.numpy import load

    try:
        data = WEIGHTS.read_bytes()
        arrays = {name: array.astype(np.float32) for name, array in load(data).items()}
        with safetensors.safe_open(WEIGHTS, "np") as file:
            header = file.metadata()
        digest = hashlib.sha256(data).hexdigest()
        weights: Any = {name: arrays[name] for name in ARRAYS}
        kinds, threshold = json.loads(header["kinds"]), float(header["threshold"])
        return KindClassifier(**weights, kinds=kinds, threshold=threshold, digest=digest)
    # Damaged bytes are answered with errors of several kinds.
    except Exception as error:
        raise UserError(f"{WEIGHTS} is missing or damaged ({one_line(error)}); install covidjax again.") from error


class RunFeatures(NamedTuple):
    """Features of some images that a run was trained on, or that were held out from it."""

    own: np.ndarray
    """float32 ``[N, G]``, of the run's network."""
    fixed: np.ndarray
    """float32 ``[N, F]``, of the fixed network, of the images as they were prepared."""


def fit(training: RunFeatures, held_out: RunFeatures) -> dict[str, Any]:
    """What a network's training images are like, for ``trust.json``."""
    classifier = bundled()
    table: dict[str, Any] = {"own": [Novelty.fit(training.own, held_out.own, OWN_MARGIN).as_dict()]}
    refused, held_out_refused = (
        np.array([bool(text) for text in classifier.refusals(part.fixed)]) for part in (training, held_out)
    )
    share = float(refused.mean())
    table["refused"] = share
    if share >= LARGE_SHARE:
        refused[:] = held_out_refused[:] = True
    if share >= LARGE_SHARE or (refused.sum() >= LEAST and share >= LEAST_SHARE):
        kind, others = classifier.project(training.fixed[refused]), classifier.project(held_out.fixed[held_out_refused])
        table |= {"kind": Novelty.fit(kind, others, KIND_MARGIN).as_dict(), "classifier": classifier.digest}
    return table


def merge(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sections of several networks of one run as that of the whole."""
    return {**networks[0], "own": [own for network in networks for own in network["own"]]}


class Gate:
    """Says why no prediction is to be made of an image.

    Args:
      trust: of the run; one of an earlier version has nothing of its own.
      encoder: the fixed network.

    Raises:
      UserError: damaged weights, or a damaged section of the run's.
    """

    def __init__(self, trust: Trust, encoder: Encoder):
        self._classifier, self._encoder = bundled(), encoder
        with _reading():
            section = trust.get(SECTION, {})
            self._own = [Novelty.from_dict(table) for table in section.get("own", ())]
            # Another version's classifier may have another idea of what is like what.
            known = section.get("classifier") == self._classifier.digest
            self._kind = Novelty.from_dict(section["kind"]) if known and "kind" in section else None
            self._only_kind = self._kind is not None and float(section["refused"]) > 0.5

    def refusals(self, images: Sequence[LoadedImage], fixed: np.ndarray, own: np.ndarray) -> list[str]:
        """Why each image is refused; empty for those that are accepted.

        Args:
          images: as they were read, and prepared for the model.
          fixed: features of the whole images by the fixed network, float32 ``[N, F]``.
          own: of the run's networks, one after another, float32 ``[N, networks · G]``.
        """
        seen = self._classifier.refusals(fixed)
        reasons = [_header_or_lungs(image) or refusal for image, refusal in zip(images, seen, strict=True)]
        if self._only_kind:
            reasons = [UNLIKE] * len(images)
        rows = [row for row, reason in enumerate(reasons) if reason]
        if self._kind and rows:
            prepared = np.stack([_thumbnail(images[row], self._encoder.size) for row in rows])
            unlike = self._kind.is_unlike(self._classifier.project(self._encoder(prepared)))
            reasons = [*reasons]
            for row, other in zip(rows, unlike, strict=True):
                reasons[row] = reasons[row] if other else ""
        return [reason or (UNLIKE if other else "") for reason, other in zip(reasons, self._is_unlike(own), strict=True)]

    def _is_unlike(self, own: np.ndarray) -> np.ndarray:
        """By the run's own features: bool ``[N]``; of several networks their mean counts."""
        if not self._own:
            return np.zeros(len(own), bool)
        with _reading():
            if own.shape[1] != sum(len(novelty.mean) for novelty in self._own):
                raise ValueError("it is of another network")
        parts = zip(self._own, np.split(own, len(self._own), axis=1), strict=True)
        return np.mean([novelty.distances(part) / novelty.threshold for novelty, part in parts], 0) > 1


def _reading() -> contextlib.AbstractContextManager[None]:
    return trust_file.reading(SECTION, "the bundled classifier alone decides, or score with --gate off")


def _header_or_lungs(image: LoadedImage) -> str:
    if image.not_chest:
        return "no frontal chest X-ray, by its header"
    return f"no frontal chest X-ray: {image.whole_because}" if image.whole_because in NO_LUNGS else ""


def _thumbnail(image: LoadedImage, size: int) -> np.ndarray:
    assert image.image is not None
    return decode.resize(image.image[..., 0], size)[..., None]
