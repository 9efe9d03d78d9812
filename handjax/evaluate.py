"""Measure a trained model: `python -m handjax.evaluate --workdir W`.

Prints a table and writes `W/eval/<step>/<benchmark>.json`.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handjax.mean_hand import MeanHand
    from handjax.stages import Stage
    from handjax.types import Batch, HandOutput


def evaluate_stage(
    model: Any,
    variables: Any,
    stage: "Stage",
    eval_batches: "Iterable[Batch]",
    *,
    root: int,
    procrustes: str = "freihand",
    mean_hand: "MeanHand | None" = None,
    predict: "Callable[[Any, Batch], HandOutput] | None" = None,
    on_batch: "Callable[[int], None] | None" = None,
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
        on_batch: Called with the number of hands done so far.

    Returns:
        `count` (hands), `metrics` (keys of `metrics.METRICS`; None where the split has
        no such annotation) and `baseline` ({"mean_hand": the same keys} or {}).
    """
    import functools

    import jax

    from handjax.mean_hand import MeanHandSums
    from handjax.metrics import MetricSums

    if predict is None:
        predict = jax.jit(functools.partial(stage.predict_fn, model))
    sums = MetricSums(root=root, procrustes=procrustes)
    baseline = (
        MeanHandSums(mean_hand, root=root, procrustes=procrustes) if mean_hand else None
    )
    for batch in eval_batches:
        # Errors need two fields; fetching logits as well would cost more than they do.
        output = predict(variables, batch)._replace(logits=None)
        sums.add(batch, jax.device_get(output))
        if baseline:
            baseline.add(batch)
        if on_batch:
            on_batch(sums.count)
    return {
        "count": sums.count,
        "metrics": sums.means(),
        "baseline": {"mean_hand": baseline.means()} if baseline else {},
    }
