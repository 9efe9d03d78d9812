"""Watch a model fill masked tokens: what `explore_masked_sampling.ipynb` shows.

For families that see an image once and score tokens often, as MMHMR does: their Model
has the methods `encode_condition(image, predicts=...)`, `score(seen, indices, masked)`
and `decode(indices)`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from handjax.nn import masked_tokens
from handjax.nn.masked_tokens import History, Sampled, Sampling
from handjax.types import Batch


def open_model(workdir: str = "", *, steps: int = 60) -> tuple[Any, Any, Any]:
    """Load a run's model, variables and config; "" trains a smoke-size MMHMR.

    Args:
        workdir: Of a `handjax.train` run.
        steps: Of each stage that is trained without a workdir.
    """
    from handjax.checkpoints.workdir import load_for_inference
    from handjax.config.files import load_config
    from handjax.training import launch

    if not workdir:
        import tempfile

        config = load_config("mmhmr:smoke")
        with config.unlocked():
            for stage in config.stages.values():
                stage.steps = steps
        workdir = tempfile.mkdtemp(prefix="handjax_sampling_")
        launch.train(config, workdir)
    config, model, variables, stage, step = load_for_inference(workdir)
    print(f"{config.family}, stage {stage}, step {step} of {workdir}")
    return model, variables, config


def built_in_hands(config: Any, stage: str = "mesh") -> Batch:
    """Return the first batch of test hands, as the stage receives them."""
    from handjax import models
    from handjax.data import run_data
    from handjax.mano import model_files

    hand = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    stages = {s.name: s for s in models.load(config.family).stages(config)}
    return next(iter(run_data.open_data(config, hand).evaluation(stages[stage])))


def watch(
    model: Any,
    variables: Any,
    image: UInt8[np.ndarray, "batch height width 3"],
    *,
    key: Array | None = None,
    steps: int = 5,
    schedule: str = "cosine",
    options: Sampling | None = None,
) -> Sampled:
    """Fill the tokens of images, with all that happened on the way.

    Args:
        model: As this file says.
        variables: Its Flax collections.
        image: Crops, 0..255.
        key: For the draws; None for key 0.
        steps: Of sampling.
        schedule: A key of `masked_tokens.SCHEDULES`.
        options: How codes are drawn; default: the most probable.
    """
    key = jax.random.key(0) if key is None else key

    @jax.jit
    def run(variables, image, key):
        seen = model.apply(variables, image, predicts=True, method="encode_condition")
        predict = functools.partial(model.apply, variables, seen, method="score")
        return masked_tokens.sample(
            key,
            predict,
            batch=len(image),
            tokens=model.num_tokens,
            steps=steps,
            schedule=schedule,
            options=options,
        )

    return jax.device_get(run(variables, image, key))


def meshes(
    model: Any, variables: Any, indices: Int[np.ndarray, "hand token"]
) -> list[Float[np.ndarray, "vertex 3"]]:
    """Decode rows of tokens into root-relative meshes of mean shape, metres."""
    decode = jax.jit(functools.partial(model.apply, method="decode"))
    return list(np.asarray(decode(variables, np.asarray(indices)).vertices))


# --- pictures -----------------------------------------------------------------------


def masks_figure(
    masks: Bool[np.ndarray, "row token"], names: Sequence[str], title: str = ""
) -> Any:
    """Plot masks as rows of squares, masked tokens dark (matplotlib figure)."""
    figure, axes = _figure(8.0, 0.8 + 0.25 * len(masks))
    axes.imshow(np.asarray(masks), cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
    counts = np.asarray(masks).sum(axis=1)
    labels = [f"{name}: {n}" for name, n in zip(names, counts, strict=True)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("token")
    axes.set_title(title)
    return figure


def progress_figure(history: History, example: int = 0) -> Any:
    """Plot masked tokens and mean confidence by step, as the paper's Figure 9.

    Confidence is the mean over all tokens after each step's draw.
    """
    masked = np.asarray(history.masked)[:, example].sum(axis=-1)
    confidence = np.asarray(history.confidence)[:, example].mean(axis=-1)
    figure, axes = _figure(6.0, 3.2)
    at = np.arange(1, len(masked) + 1)
    axes.bar(at, masked, color="0.75")
    axes.set_xticks(at)
    axes.set_xlabel("step")
    axes.set_ylabel("masked tokens before it")
    second = axes.twinx()
    second.plot(at, confidence, color="tab:green", marker="o")
    second.set_ylim(0, 1)
    second.set_ylabel("mean confidence after it", color="tab:green")
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Figure without pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
