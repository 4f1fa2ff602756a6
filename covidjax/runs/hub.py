"""Weights from the Hugging Face hub, which is asked only where ``hub:`` is named. Needs the extra ``hub``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from covidjax.errors import UsageError, UserError, one_line

PREFIX = "hub:"

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""As timm and others call them."""

TIMEOUT = 30.0
"""Seconds that the hub may take to answer."""


class Fetched(NamedTuple):
    """What lies in the hub's cache on this machine now."""

    weights: Path
    source: str
    """``hub:REPO@COMMIT``."""
    licence: str
    """As the repository states it; empty where it does not."""


def parse(text: str) -> tuple[str, str]:
    """The repository and the revision of ``hub:REPO@REVISION``.

    Raises:
      UsageError: another form; a revision is required, so that the weights are the same next time.
    """
    repository, _, revision = text.removeprefix(PREFIX).partition("@")
    form = "hub:REPO@REVISION, such as hub:timm/tf_efficientnet_lite0.in1k@COMMIT"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository, re.ASCII):
        raise UsageError(f"{text} names no repository; write {form}.")
    if not revision:
        raise UsageError(f"{text} names no revision, and a branch changes; write {form}, with a commit or a tag.")
    return repository, revision


def fetch(text: str) -> Fetched:
    """Download the weights of ``hub:REPO@REVISION``, and its ``config.json`` beside them, unless the cache has them.

    Raises:
      UserError: no such repository or revision, no access to it, no safetensors in it, no network, or no such extra.
    """
    repository, revision = parse(text)
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise UserError(f"{text} needs the hub's client; install it with `pip install 'covidjax[hub]'`.") from None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, WEIGHTS, revision=revision)
        if isinstance(cached, str) and re.fullmatch(r"[0-9a-f]{40}", revision):
            return Fetched(Path(cached), f"{PREFIX}{repository}@{revision}", "")
        api = huggingface_hub.HfApi(endpoint=endpoint)
        info = api.model_info(repository, revision=revision, timeout=TIMEOUT)
        commit, names = str(info.sha), [sibling.rfilename for sibling in info.siblings or ()]
        place: Any = {"repo_id": repository, "revision": commit, "endpoint": endpoint}
        weights = huggingface_hub.hf_hub_download(filename=_weights_name(text, names), **place)
        if CONFIG in names:
            huggingface_hub.hf_hub_download(filename=CONFIG, **place)
        return Fetched(Path(weights), f"{PREFIX}{repository}@{commit}", _licence(info.tags or ()))
    except UserError:
        raise
    except errors.GatedRepoError as error:
        remedy = "accept its conditions on the hub's page and log in with `hf auth login`, or name another"
        raise UserError(f"{repository} is gated; {remedy}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"The hub has no repository {repository} that you may read; check its name, or log in.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision}; name a commit or a tag of it.") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{text} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or name a file.") from error
    # The client answers with errors of its own, of its HTTP library, of the system.
    except Exception as error:
        remedy = "see that the network lets you there, or fetch it elsewhere and name the file"
        raise UserError(f"{text} cannot be fetched ({one_line(error)}); {remedy}.") from error


def _weights_name(text: str, names: list[str]) -> str:
    """The repository's file of weights."""
    found = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS in found:
        return WEIGHTS
    if not found:
        raise UserError(f"{text} has no file of safetensors, and nothing else is read; name another repository.")
    if len(found) > 1:
        shown = ", ".join(sorted(found)[:3])
        raise UserError(f"{text} has several files of safetensors ({shown}); download the one you mean, and name the file.")
    return found[0]


def _licence(tags: Any) -> str:
    """Of the repository, which the hub has as a tag."""
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
