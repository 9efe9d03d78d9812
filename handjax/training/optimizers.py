"""Optimisers and learning rates from a stage's config."""

import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from handjax.config import schema as configs
from handjax.errors import UserError

REST = configs.REST
"""Label of the parameters that no group of a stage matches."""


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Build a stage's learning rate by step, from `config.stages.<name>`.

    A linear warm-up from `warmup_factor * lr` to `lr` comes first; then "cosine" falls
    to `end_factor * lr` at the last step, "step" multiplies by `decay_factor` at each
    fraction of the run in `boundaries`, and "constant" stays.
    """
    options, lr, steps = config.schedule, config.optimizer.lr, config.steps
    warmup = options.warmup_steps
    if options.name == "cosine":
        rest = optax.cosine_decay_schedule(
            lr, max(steps - warmup, 1), alpha=options.end_factor
        )
    elif options.name == "step":
        # Several drops may fall on one step: all of them count.
        drops = Counter(
            max(round(fraction * steps) - warmup, 0) for fraction in options.boundaries
        )
        rest = optax.piecewise_constant_schedule(
            lr, {at: options.decay_factor**count for at, count in drops.items()}
        )
    elif options.name == "constant":
        rest = optax.constant_schedule(lr)
    else:
        raise UserError(f"schedule.name={options.name!r}: cosine, step or constant.")
    if not warmup:
        return rest
    start = optax.linear_schedule(options.warmup_factor * lr, lr, warmup)
    return optax.join_schedules([start, rest], [warmup])


def schedules(config: ml_collections.ConfigDict) -> dict[str, optax.Schedule]:
    """Build the learning rates of one stage, by the name they are logged under.

    "lr" is the stage's, "lr_<group>" that of a group.
    """
    own = {
        f"lr_{name}": schedule(configs.of_group(config, name)) for name in config.groups
    }
    return {"lr": schedule(config), **own}


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Build the gradient transformation of a stage, from `config.stages.<name>`.

    Each of `groups` has its own, down to the norm by which gradients are clipped;
    without groups the state is that of a single one.
    """
    if not config.groups:
        return _one(config)
    each = {name: _one(configs.of_group(config, name)) for name in config.groups}
    return optax.partition(
        {REST: _one(config), **each}, functools.partial(labels, groups=config.groups)
    )


def labels(params: dict[str, Any], groups: ml_collections.ConfigDict) -> dict[str, str]:
    """Return the group of each parameter, or `REST`, by path.

    Args:
        params: that the stage trains, by path.
        groups: `config.stages.<name>.groups`.

    Raises:
        UserError: if a pattern matches no parameter, or two match the same one.
    """
    found = {
        path: [name for name in groups if re.search(groups[name].pattern, path)]
        for path in params
    }
    for name in groups:
        if not any(name in names for names in found.values()):
            parts = sorted({path.split("/")[0] for path in params})
            raise UserError(
                f"groups.{name}.pattern={groups[name].pattern!r} matches no parameter "
                f"that the stage trains; their paths begin with {', '.join(parts)}."
            )
    for path, names in found.items():
        if len(names) > 1:
            raise UserError(
                f"groups {' and '.join(names)} both match parameter {path!r}; make "
                "their patterns exclude each other."
            )
    return {path: (names or [REST])[0] for path, names in found.items()}


def _one(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clip by global norm, moments, weight decay, learning rate: the order of AdamW."""
    options = config.optimizer
    parts = []
    if config.grad_clip > 0:
        parts.append(optax.clip_by_global_norm(config.grad_clip))
    if options.name in ("adamw", "adam"):
        parts.append(optax.scale_by_adam(options.b1, options.b2, options.eps))
    elif options.name == "sgd":
        parts.append(optax.trace(options.momentum))
    else:
        raise UserError(f"optimizer.name={options.name!r}: adamw, adam or sgd.")
    if options.weight_decay > 0 and options.name != "adam":
        mask = lambda params: decay_mask(params, options.decay_mask)  # noqa: E731
        parts.append(optax.add_decayed_weights(options.weight_decay, mask))
    parts.append(optax.scale_by_learning_rate(schedule(config)))
    return optax.chain(*parts)


def decay_mask(params: Any, name: str) -> Any:
    """Return which parameters decay: a tree of bools like `params`.

    "no_1d" spares vectors and scalars (biases, norms, layer scales), "paper" spares
    what has `bn` or `bias` in its path, as SimpleHand's released code does, "all"
    spares nothing.
    """

    def decays(path: tuple[Any, ...], value: Any) -> bool:
        if name == "no_1d":
            return jnp.ndim(value) > 1
        if name == "paper":
            return re.search("bn|bias", path_name(path).lower()) is None
        if name == "all":
            return True
        raise UserError(f"decay_mask={name!r} is not one of no_1d, paper, all.")

    return jax.tree_util.tree_map_with_path(decays, params)


def path_name(path: tuple[Any, ...]) -> str:
    """Return a tree path as `tokenizer/encoder/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
