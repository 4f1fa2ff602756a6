"""Trained networks, from a run's folder or from one file of weights: which there are, and loading them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from covidjax.errors import UserError
from covidjax.runs import checkpoint, folder, trust_file, weights_file
from covidjax.runs.folder import Run
from covidjax.runs.trust_file import Trust

if TYPE_CHECKING:
    from covidjax.models import Network, Weights

BUNDLED = weights_file.FOLDER / "classifier.safetensors"
"""The classifier that the package carries; MODEL_CARD.md says what it is and what it is not."""


class LoadedRun(NamedTuple):
    """A trained run, ready to predict."""

    run: Run
    networks: list[Weights]
    """float32 weights: one, or those of every network of a cross-validation or an ensemble."""
    network: Network
    """The function that they are the weights of, in the precision of the run's settings on this device."""

    @property
    def weights(self) -> Weights:
        """Of a single run."""
        return self.networks[0]


def newest_run(root: Path = Path("runs"), *, usable: bool = True, classifier: bool = False) -> Path | None:
    """The run under a folder that was written to last.

    Args:
      root: the folder.
      usable: only runs of which every network has a checkpoint.
      classifier: only runs of classifiers.
    """

    def is_wanted(run: Path) -> bool:
        with contextlib.suppress(UserError):  # its settings are damaged, which is told when it is used
            if classifier and folder.read_run(run).config.model.is_segmenter:
                return False
        return not usable or all(checkpoint.steps(member, "last") for member in _network_folders(run))

    def written(run: Path) -> float:
        checkpoints = [member / "checkpoints" / "last" for member in _network_folders(run)]
        return max(path.stat().st_mtime for path in (run / folder.CONFIG, *checkpoints) if path.exists())

    runs = [path.parent for path in root.glob(f"*/{folder.CONFIG}")]
    return max(filter(is_wanted, runs), key=written, default=None)


def _network_folders(run: Path) -> list[Path]:
    with contextlib.suppress(UserError):
        return folder.network_folders(run)
    return [run]


def is_file(path: Path) -> bool:
    """Whether one file is meant, not a run's folder. Of a bundled one that is missing, what reads it says so."""
    return path.is_file() or path.parent == weights_file.FOLDER


def read_run(path: Path) -> Run:
    """Settings and preprocessing.

    Raises:
      UserError: no run and no such file, or damaged ones.
    """
    return weights_file.read(path).run if is_file(path) else folder.read_run(path)


def describe(path: Path) -> str:
    """Which networks a run or a file is used by, in words, such as ``last checkpoint, step 120``."""
    if is_file(path):
        return weights_file.read(path).description
    if folders := folder.member_folders(path):
        train = folder.read_run(path).config.train
        held_out = "sources" if train.cv_by == "source" else "folds"
        kind = f"{'networks' if train.ensemble > 1 else held_out} of {'a cross-validation' if train.cv else 'an ensemble'}"
        return f"mean probabilities of the {len(folders)} {kind}"
    kind = checkpoint.selected_kind(path)
    return f"{kind} checkpoint, step {checkpoint.verify(path, kind)[0]}"


def digests(path: Path) -> list[str]:
    """Digests by which the networks are known again."""
    if is_file(path):
        return [weights_file.read(path).digest]
    folders = folder.network_folders(path)
    return [checkpoint.verify(member, checkpoint.selected_kind(member))[1] for member in folders]


def trained_on(path: Path) -> set[str]:
    """Keys that the training images can be known by, see ``runs.folder.write_trained_on``."""
    if is_file(path):
        return weights_file.read(path).trained_on
    return set().union(*map(folder.read_trained_on, folder.network_folders(path)))


def trust(path: Path) -> Trust:
    """What was found out of a run when it was trained, see ``runs.trust_file``; nothing of one of an earlier version."""
    return weights_file.read(path).trust if is_file(path) else trust_file.read(path)


def licence(path: Path) -> str:
    """Of the weights: what the file states, or of a run what it was started from; empty where nobody does."""
    return weights_file.read(path).licence if is_file(path) else folder.read_run(path).init.licence


def load_run(path: Path, device_name: str = "auto") -> LoadedRun:
    """Load the settings and weights of a run, of all networks of a cross-validation or an ensemble, or of a file of
    weights. Of a run the best checkpoint counts where a validation fold chose one, else the last.

    Args:
      path: the run's folder, or the file.
      device_name: ``auto``, ``cpu`` or ``gpu``.

    Raises:
      UserError: no run, no usable checkpoint in it, one of another network, or no such device.
    """
    from covidjax import device
    from covidjax.models import create_model

    run = read_run(path)
    dtype, _ = device.precision(run.config.train.precision, device.start(device_name))
    with device.own_flags():
        network = create_model(run.config.model, run.preprocess, dtype)
        expected: Any = network.abstract()
        if is_file(path):
            return LoadedRun(run, weights_file.networks(path, weights_file.read(path), expected), network)
        folders = folder.network_folders(path)
        saved = [checkpoint.restore(member, checkpoint.selected_kind(member), expected) for member in folders]
        return LoadedRun(run, [item.weights for item in saved], network)
