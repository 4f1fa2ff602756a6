"""The optimizer and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from covidjax.config import TrainConfig


def learning_rate(config: TrainConfig, steps: int) -> optax.Schedule:
    """Step → learning rate: constant, or one cycle (Smith 2018) in the shape that fastai gives it: from a 25th of the peak
    up to it in the first 30 % of the steps, then down to a 250,000th of it, both along a cosine. Adam's momentum, which
    fastai moves the other way, stays as it is."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    return optax.cosine_onecycle_schedule(max(steps, 2), config.learning_rate, 0.3, 25.0, 1e4)


def learning_rate_table(config: TrainConfig, steps: int) -> np.ndarray:
    """The learning rate of every step, float32. The table's length is the next multiple of 1024, so that runs of other
    lengths are the same program; what is beyond ``steps`` is not reached."""
    return np.asarray(jax.vmap(learning_rate(config, steps))(jnp.arange(-(-steps // 1024) * 1024)), np.float32)


def make_optimizer(config: TrainConfig, rate: optax.Schedule, head: Sequence[str] = ()) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015), or AdamW where there is weight decay (Loshchilov and Hutter 2019).

    Args:
      config: settings.
      rate: of the head, and times ``train.backbone_rate`` of the backbone; where that is frozen it stays as it is.
      head: the first names of the head's parameters.
    """
    adam = optax.adamw(rate, weight_decay=config.weight_decay) if config.weight_decay else optax.adam(rate)
    factor = 0.0 if config.freeze == "backbone" else config.backbone_rate
    if factor == 1.0:
        return adam

    def scale(updates: Any, _: Any) -> Any:
        backbone = {name: jax.tree.map(lambda u: factor * u, part) for name, part in updates.items() if name not in head}
        return updates | backbone

    return optax.chain(adam, optax.stateless(scale))
