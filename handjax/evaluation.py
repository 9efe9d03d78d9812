"""Errors of one stage over a split."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from handjax import tta
from handjax.mean_hand import MeanHand, MeanHandSums
from handjax.metrics import GenerationSums, MetricSums
from handjax.stages import Stage
from handjax.types import Batch, HandOutput


def evaluate_stage(
    model: Any,
    variables: Any,
    stage: Stage,
    eval_batches: Iterable[Batch],
    *,
    root: int,
    procrustes: str = "freihand",
    mean_hand: MeanHand | None = None,
    predict: Callable[[Any, Batch], HandOutput] | None = None,
    tta_mode: str | None = None,
    on_batch: Callable[[int], None] | None = None,
    generated: bool = False,
) -> dict[str, Any]:
    """Run one stage's prediction over a split and average its errors.

    Args:
        model: The family's Model.
        variables: Its Flax collections.
        stage: Whose `predict_fn` is measured.
        eval_batches: Numpy batches, padding marked by `example_valid`.
        root: Joint subtracted before the errors without alignment.
        procrustes: "freihand" (reflections allowed) or "proper"; see `metrics`.
        mean_hand: Baseline that is measured on the same hands; None leaves it out.
        predict: Compiled (variables, batch) -> HandOutput, kept by callers that
            evaluate more than once; None compiles `stage.predict_fn`.
        tta_mode: Test-time augmentation, a key of `tta.MODES`; None looks once.
        on_batch: Called with the number of hands done so far.
        generated: Whether hands are made of texts, which adds `generation`.

    Returns:
        `count` (hands), `metrics` (keys of `metrics.METRICS`; None where the split has
        no such annotation), `baseline` ({"mean_hand": the same keys} or {}) and, of
        generated hands, `generation` (keys of `metrics.GENERATION_METRICS`).
    """
    if predict is None:
        function = tta.augmented(stage.predict_fn, tta_mode)
        predict = jax.jit(functools.partial(function, model))
    answers = tta.answers_per_hand(tta_mode)
    sums = MetricSums(root=root, procrustes=procrustes)
    baseline = (
        MeanHandSums(mean_hand, root=root, procrustes=procrustes) if mean_hand else None
    )
    generation = GenerationSums(root=root, procrustes=procrustes) if generated else None
    for batch in eval_batches:
        # Errors need two fields; fetching logits as well would cost more than they do.
        output = predict(variables, batch)._replace(logits=None)
        output = jax.device_get(output)
        sums.add(_repeated(batch, answers), output)
        if generation:
            generation.add(batch, output)
        if baseline:
            baseline.add(batch)
        if on_batch:
            on_batch(sums.count // answers)
    return {
        "count": sums.count // answers,
        "metrics": sums.means(),
        "baseline": {"mean_hand": baseline.means()} if baseline else {},
        **({"generation": generation.means()} if generation else {}),
        "confidence": sums.by_confidence(),
    }


def _repeated(batch: Batch, times: int) -> Batch:
    """The truth of each answer: the batch again and again, without its pictures."""
    if times == 1:
        return batch
    truth = batch._replace(image=None)
    return jax.tree.map(lambda x: np.concatenate([x] * times), truth)
