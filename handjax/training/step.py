"""The state of one training stage and the function that advances it by one step."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from einops import rearrange

from handjax.errors import UserError
from handjax.family.stage import LossFn, Stage
from handjax.losses import supervision
from handjax.training import optimizers
from handjax.types import Variables

RNG_STREAMS = ("dropout", "drop_path", "codebook", "mask")
"""Names under which a loss function finds random keys, new ones at every step."""

GRAD_NORMS = "grad_norms"
"""Key of the gradient norms in the metrics of a step: a dict by parameter path."""


class TrainState(NamedTuple):
    """Everything that a step changes; all of it is in the checkpoint."""

    step: Any
    """Number of updates done, int32."""
    params: dict[str, Any]
    """Trainable and frozen parameters, nested as Flax nests them."""
    collections: dict[str, Any]
    """The other collections: `batch_stats`, `codebook`, `constants`."""
    opt_state: Any
    """Of the trainable parameters only."""
    rng: Any
    """Key data of the stage; step n uses `fold_in(rng, n)`."""
    skipped: Any
    """Number of updates that were not made because they were not finite, int32."""

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {"params": self.params, **self.collections}


def flat(tree: Any) -> dict[str, Any]:
    """Flatten a nested dict to {"tokenizer/vq/embedding": array}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nest the dict again that `flat` flattened."""
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def partition(params: Any, stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters by path: those that the stage trains, and the frozen ones.

    Raises:
        UserError: if the stage's pattern matches no parameter.
    """
    leaves = flat(params)
    chosen = {k: v for k, v in leaves.items() if re.search(stage.trainable, k)}
    if not chosen:
        parts = sorted({k.split("/")[0] for k in leaves})
        raise UserError(
            f"Stage {stage.name!r}: trainable={stage.trainable!r} matches no "
            f"parameter; the paths begin with {', '.join(parts)}."
        )
    return chosen, {k: v for k, v in leaves.items() if k not in chosen}


def frozen(variables: Variables, stage: Stage) -> dict[str, Any]:
    """Return all arrays that the stage must keep bit-equal, by `collection/path`."""
    return {k: v for k, v in _by_name(variables) if not _matches(stage, k)}


def trained(variables: Variables, stage: Stage) -> dict[str, Any]:
    """Return all arrays that the stage is there to make, by `collection/path`."""
    return {k: v for k, v in _by_name(variables) if _matches(stage, k)}


def _by_name(variables: Variables) -> list[tuple[str, Any]]:
    return sorted(flat(dict(variables)).items())


def _matches(stage: Stage, name: str) -> bool:
    return re.search(stage.trainable, name.split("/", 1)[1]) is not None


def create(
    variables: Variables, stage: Stage, config: ml_collections.ConfigDict, rng: Any
) -> TrainState:
    """Create the state before the first step of a stage.

    Args:
        variables: what the model starts from.
        stage: decides which parameters get optimiser state.
        config: `config.stages.<name>`.
        rng: typed key of the stage.
    """
    trainable, _ = partition(variables["params"], stage)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        collections={k: v for k, v in variables.items() if k != "params"},
        opt_state=optimizers.optimizer(config).init(trainable),
        rng=jax.random.key_data(rng),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_step(
    model: Any,
    stage: Stage,
    config: ml_collections.ConfigDict,
    *,
    devices: int = 1,
    batch_norm: str = "global",
    max_skipped: int = 0,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """Return the function (state, batch) -> (state, metrics) of a stage, to be jitted.

    Metrics hold `loss`, `loss_<name>` unweighted, `lr` and `lr_<group>`, `grad_norm`,
    `update_norm`, `skipped`, what the family returns, and `GRAD_NORMS`.

    What is not annotated is cleared first, so that no loss sees it.

    An update that is not finite is not made. If it may be skipped, the state is at the
    next step all the same, and so are the learning rates; if not, it stays for good
    what it was before that update, however often the function is called after it.

    Args:
        model: Of the family.
        stage: Of the family.
        config: `config.stages.<name>`.
        devices: Devices that share the batch, each a run of its rows.
        batch_norm: `config.train.batch_norm`; with "device", the rows of each device
            are normalised by their own statistics.
        max_skipped: Updates that may be skipped in a stage.
    """
    tx = optimizers.optimizer(config)
    rates = optimizers.schedules(config)
    own = batch_norm == "device" and devices > 1
    loss_fn = _on_each_device(stage, devices) if own else stage.loss_fn
    gradients = jax.value_and_grad(_total_loss(model, stage, loss_fn), has_aux=True)
    if config.accumulate > 1:
        gradients = _in_micro_batches(gradients, config.accumulate, devices)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        trainable, rest = partition(state.params, stage)
        weights = loss_weights(config, state.step)
        (loss, (losses, metrics, updates)), grads = gradients(
            trainable, rest, weights, state.collections, batch, _keys(state)
        )
        changes, opt_state = tx.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, changes)
        metrics = {
            **metrics,
            **{f"loss_{name}": value for name, value in losses.items()},
            "loss": loss,
            **{name: rate(state.step) for name, rate in rates.items()},
            **_norms(grads, changes),
        }
        updated = TrainState(
            step=state.step + 1,
            params=nested({**rest, **trainable}),
            collections={**state.collections, **updates},
            opt_state=opt_state,
            rng=state.rng,
            skipped=state.skipped,
        )
        state = _guarded(state, updated, _all_finite(metrics, config), max_skipped)
        return state, {**metrics, "skipped": state.skipped}

    return step


def _total_loss(model: Any, stage: Stage, loss_fn: LossFn) -> Callable:
    """Return the weighted sum of a stage's losses, as a function to differentiate."""

    def total(
        trainable: Any,
        rest: Any,
        weights: Any,
        collections: Any,
        batch: Any,
        rngs: Any,
    ) -> Any:
        variables = {"params": nested({**rest, **trainable}), **collections}
        batch = supervision.zero_unannotated(batch)
        losses, metrics, updates = loss_fn(model, variables, batch, rngs)
        _check_losses(stage, losses, weights)
        _check_updates(stage, updates, collections)
        loss = sum(weights[name] * losses[name] for name in weights)  # the one place
        return loss, (losses, metrics, updates)

    return total


def _keys(state: TrainState) -> dict[str, Any]:
    """Return the random keys of the update that a state is before."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    return {name: jax.random.fold_in(rng, i) for i, name in enumerate(RNG_STREAMS)}


def _norms(grads: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the norms of an update: of all gradients, of the changes, of each."""
    norms = {path: jnp.linalg.norm(grad.ravel()) for path, grad in grads.items()}
    return {
        "grad_norm": optax.tree.norm(norms),
        "update_norm": optax.tree.norm(changes),
        GRAD_NORMS: norms,
    }


def _all_finite(metrics: dict[str, Any], config: ml_collections.ConfigDict) -> Any:
    """Return whether all that `first_nonfinite` looks at is finite."""
    names = *(f"loss_{name}" for name in config.losses), *_FINITE
    values = [metrics[name] for name in names] + list(metrics[GRAD_NORMS].values())
    return jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(v, float) for v in values])))


_FINITE = ("loss", "grad_norm", "update_norm")


def _guarded(old: TrainState, new: TrainState, finite: Any, limit: int) -> TrainState:
    """Return the state after an update, or that before it; see `make_step`."""
    given_up = old.skipped > limit
    skipped = jnp.where(given_up | finite, old.skipped, old.skipped + 1)
    make = finite & ~given_up
    kept = jax.tree.map(lambda x, y: jnp.where(make, y, x), old, new)
    moves = skipped <= limit
    step = jnp.where(moves, new.step, old.step)
    opt_state = _schedules_at(old.opt_state, new.opt_state, kept.opt_state, moves)
    return kept._replace(step=step, skipped=skipped, opt_state=opt_state)


def _schedules_at(old: Any, new: Any, kept: Any, moves: Any) -> Any:
    """Return `kept` with the counts of learning rates moved on, as the step is.

    A skipped update leaves the moments alone; the rate follows the step, or it would
    lag behind the one that is logged, and a schedule would not reach its end.
    """

    def chosen(x: Any, y: Any, z: Any) -> Any:
        if not isinstance(z, optax.ScaleByScheduleState):
            return z
        return z._replace(count=jnp.where(moves, y.count, x.count))

    return jax.tree.map(
        chosen,
        old,
        new,
        kept,
        is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
    )


def loss_weights(config: ml_collections.ConfigDict, step: Any) -> dict[str, Any]:
    """Return the losses' weights at an update, from `config.stages.<name>`.

    Args:
        config: with `losses` and `ramps`.
        step: number of updates done before.
    """
    weights = config.losses.to_dict()
    for name, ramp in config.ramps.items():
        weights[name] *= jax.nn.sigmoid((step - ramp.middle) / ramp.width)
    return weights


def _on_each_device(stage: Stage, devices: int) -> LossFn:
    """Wrap the stage's loss: each device's rows on their own, then their means.

    What is a mean over the batch stays what it was; only batch statistics are other
    ones. The running statistics are the devices' mean.
    """

    def loss_fn(model: Any, variables: Variables, batch: Any, rngs: Any) -> Any:
        each = "(device row) ... -> device row ..."
        parts = jax.tree.map(lambda x: rearrange(x, each, device=devices), batch)
        keys = {name: jax.random.split(key, devices) for name, key in rngs.items()}
        alone = functools.partial(stage.loss_fn, model)
        found = jax.vmap(alone, in_axes=(None, 0, 0))(variables, parts, keys)
        updated = sorted(set(found[2]) - {"batch_stats"})
        if updated:
            raise UserError(
                f"config.train.batch_norm='device' is not for stage {stage.name!r}, "
                f"which moves {', '.join(updated)} by the whole batch; use 'global'."
            )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    return loss_fn


def _in_micro_batches(gradients: Callable, number: int, devices: int) -> Callable:
    """Wrap `gradients`: one part of the batch after another, then their means.

    Only one part's activations are in memory at a time. What is a mean over the batch
    stays what it was; what is a sum becomes a part's. Batch statistics and codebooks
    move with every part, each from where the one before left them.
    """

    def cut(x: Any) -> Any:
        # Every device cuts its own rows, so that none has to be sent to another.
        rows = "(device part row) ... -> part (device row) ..."
        return rearrange(x, rows, device=devices, part=number)

    def mean_gradients(
        trainable: Any,
        rest: Any,
        weights: Any,
        collections: Any,
        batch: Any,
        rngs: Any,
    ) -> Any:
        keys = {name: jax.random.split(key, number) for name, key in rngs.items()}

        def one(carry: Any, part: Any) -> Any:
            moved, sums = carry
            (loss, (losses, metrics, updates)), grads = gradients(
                trainable, rest, weights, moved, *part
            )
            carry = {**moved, **updates}, jax.tree.map(jnp.add, sums, grads)
            return carry, (loss, losses, metrics)

        start = collections, jax.tree.map(jnp.zeros_like, trainable)
        parts = jax.tree.map(cut, batch), keys
        (moved, sums), seen = jax.lax.scan(one, start, parts)
        loss, losses, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), seen)
        return (loss, (losses, metrics, moved)), jax.tree.map(
            lambda x: x / number, sums
        )

    return mean_gradients


def _check_losses(stage: Stage, losses: dict, weights: dict) -> None:
    if set(losses) != set(weights):
        raise UserError(
            f"Stage {stage.name!r} returns losses {sorted(losses)} but "
            f"config.stages.{stage.name}.losses weighs {sorted(weights)}; the two must "
            "be the same (a weight of 0 switches a loss off)."
        )


def _check_updates(stage: Stage, updates: dict, collections: dict) -> None:
    unknown = sorted(set(updates) - set(collections))
    if unknown:
        raise UserError(
            f"Stage {stage.name!r} updates collections {unknown}, which the model does "
            f"not have; it has {sorted(collections)}."
        )


def first_nonfinite(
    metrics: dict[str, Any],
    grad_norms: dict[str, Any],
    config: ml_collections.ConfigDict,
) -> str:
    """Name of the first quantity of a step that is inf or nan, "" if all are finite.

    Args:
        metrics: scalars of `make_step`, on the host.
        grad_norms: norm of each trainable parameter's gradient, by path.
        config: `config.stages.<name>`; its losses are looked at first.
    """
    for name in config.losses:
        if not np.isfinite(metrics[f"loss_{name}"]):
            return f"loss {name!r} is {float(metrics[f'loss_{name}'])}"
    for name in sorted(grad_norms):
        if not np.isfinite(grad_norms[name]):
            return f"the gradient of {name!r} is {float(grad_norms[name])}"
    for name in _FINITE:
        if not np.isfinite(metrics[name]):
            return f"{name!r} is {float(metrics[name])}"
    return ""
