"""Sum the errors of one stage over a split."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from handjax.distributed import split_shares
from handjax.evaluation.mean_hand import MeanHand, MeanHandSums
from handjax.family.stage import Stage
from handjax.inference import tta
from handjax.metrics.mesh_errors import GenerationSums, MetricSums
from handjax.types import Batch, HandOutput


def measure(
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
) -> "StageSums":
    """Run one stage's prediction over a split and add up its errors.

    Args:
        model: The family's Model.
        variables: Its Flax collections.
        stage: Stage whose `predict_fn` is measured.
        eval_batches: Numpy batches, padding marked by `example_valid`.
        root: Joint subtracted before the errors without alignment.
        procrustes: A key of `mesh_errors.PROTOCOLS`.
        mean_hand: Baseline that is measured on the same hands; None leaves it out.
        predict: Compiled (variables, batch) -> HandOutput, kept by callers that
            evaluate more than once; None compiles `stage.predict_fn`.
        tta_mode: Test-time augmentation, a key of `tta.MODES`; None looks once.
        on_batch: Called with the number of hands so far.
        generated: Whether hands are made of texts, which adds `generation`.
    """
    sums = StageSums(
        root=root,
        procrustes=procrustes,
        mean_hand=mean_hand,
        generated=generated,
        answers=tta.answers_per_hand(tta_mode),
    )
    if predict is None:
        function = tta.augmented(stage.predict_fn, tta_mode)
        predict = jax.jit(functools.partial(function, model))
    for batch in eval_batches:
        # Errors need two fields; fetching logits as well would cost more than they do.
        output = predict(variables, batch)._replace(logits=None)
        sums.add(batch, jax.device_get(output))
        if on_batch:
            on_batch(sums.count)
    return sums


class StageSums:
    """Errors of a stage, of the baseline and of generated hands, added up."""

    def __init__(
        self,
        *,
        root: int,
        procrustes: str,
        mean_hand: MeanHand | None,
        generated: bool,
        answers: int,
    ):
        options: dict[str, Any] = dict(root=root, procrustes=procrustes)
        self._model = MetricSums(**options)
        self._baseline = MeanHandSums(mean_hand, **options) if mean_hand else None
        self._generation = GenerationSums(**options) if generated else None
        self._answers = answers
        """Predictions for each hand."""
        self.indices: list[np.ndarray] = []
        """Positions in the split of each batch's hands."""

    @property
    def count(self) -> int:
        """Number of hands so far."""
        return self._model.count // self._answers

    def add(self, batch: Batch, output: HandOutput) -> None:
        """Count the hands of a batch; padding is left out."""
        self._model.add(_repeated(batch, self._answers), output)
        if self._generation:
            self._generation.add(batch, output)
        if self._baseline:
            self._baseline.add(batch)
        self.indices.append(np.asarray(batch.index)[np.asarray(batch.example_valid)])

    def report(self) -> dict[str, Any]:
        """Return the errors.

        Returns:
            `count` (hands), `metrics` (keys of `mesh_errors.METRICS`; None where the
            split has no such annotation), `baseline` ({"mean_hand": the same keys} or
            {}), `confidence` and, of generated hands, `generation` (keys of
            `mesh_errors.GENERATION_METRICS`).
        """
        baseline, generation = self._baseline, self._generation
        return {
            "count": self.count,
            "metrics": self._model.means(),
            "baseline": {"mean_hand": baseline.means()} if baseline else {},
            **({"generation": generation.means()} if generation else {}),
            "confidence": self._model.by_confidence(),
        }

    def state(self) -> split_shares.Arrays:
        """Return all sums, for `merge`."""
        parts = {name: part.state() for name, part in self._parts().items()}
        indices = np.concatenate([np.zeros(0, np.int64), *self.indices])
        return {"indices": indices, **split_shares.packed(parts)}

    def merge(self, state: split_shares.Arrays) -> None:
        """Add the sums of another process."""
        self.indices.append(state["indices"])
        for name, part in self._parts().items():
            part.merge(split_shares.unpacked(state, name))

    def _parts(self) -> dict[str, Any]:
        parts = dict(
            model=self._model, baseline=self._baseline, generation=self._generation
        )
        return {name: part for name, part in parts.items() if part is not None}


def _repeated(batch: Batch, times: int) -> Batch:
    """Repeat the batch's truth once per answer; images dropped."""
    if times == 1:
        return batch
    truth = batch._replace(image=None)
    return jax.tree.map(lambda x: np.concatenate([x] * times), truth)
