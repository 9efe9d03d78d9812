"""Sum the errors of one stage over a split."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from handjax.distributed import split_shares
from handjax.errors import HandjaxError
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
    split: str = "test",
    skip_nonfinite: bool = False,
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
        split: Name of the split, for messages.
        skip_nonfinite: Whether hands with values that are nan or infinite are left out
            and counted.

    Raises:
        HandjaxError: Names the first such hand, if they are not left out.
    """
    sums = StageSums(
        root=root,
        procrustes=procrustes,
        mean_hand=mean_hand,
        generated=generated,
        answers=tta.answers_per_hand(tta_mode),
        split=split,
        skip_nonfinite=skip_nonfinite,
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
        split: str = "test",
        skip_nonfinite: bool = False,
    ):
        options: dict[str, Any] = dict(root=root, procrustes=procrustes)
        self._model = MetricSums(**options)
        self._baseline = MeanHandSums(mean_hand, **options) if mean_hand else None
        self._generation = GenerationSums(**options) if generated else None
        self._answers = answers
        """Predictions for each hand."""
        self._split, self._skip_nonfinite = split, skip_nonfinite
        self.nonfinite = 0
        """Number of hands that were left out."""
        self.indices: list[np.ndarray] = []
        """Positions in the split of each batch's hands."""

    @property
    def count(self) -> int:
        """Number of hands so far."""
        return self._model.count // self._answers

    def add(self, batch: Batch, output: HandOutput) -> None:
        """Count the hands of a batch; padding is left out.

        Raises:
            HandjaxError: A value of a hand is nan or infinite, and such hands are not
                left out; names hand and field.
        """
        valid = np.asarray(batch.example_valid)
        self.indices.append(np.asarray(batch.index)[valid])
        batch = batch._replace(example_valid=valid & self._finite(batch, output))
        self._model.add(_repeated(batch, self._answers), output)
        if self._generation:
            self._generation.add(batch, output)
        if self._baseline:
            self._baseline.add(batch)

    def _finite(self, batch: Batch, output: HandOutput) -> np.ndarray:
        """Return which rows can be scored; count or refuse the others."""
        valid, finite = np.asarray(batch.example_valid), True
        for name, rows in _scored_fields(batch, output, self._answers):
            bad = valid & ~rows
            if bad.any() and not self._skip_nonfinite:
                index = int(np.asarray(batch.index)[bad][0])
                raise HandjaxError(
                    f"split {self._split!r}, hand {index}: its {name} holds nan or "
                    "infinite values, so there is no error to add up. --skip_nonfinite "
                    "leaves such hands out and counts them."
                )
            finite = finite & rows
        self.nonfinite += int((valid & ~finite).sum())
        return finite

    def report(self) -> dict[str, Any]:
        """Return the errors.

        Returns:
            `count` (hands), `nonfinite` (hands left out), `metrics` (keys of
            `mesh_errors.METRICS`; None where the split has no such annotation),
            `baseline` ({"mean_hand": the same keys} or {}), `confidence` and, of
            generated hands, `generation` (keys of `mesh_errors.GENERATION_METRICS`).
        """
        baseline, generation = self._baseline, self._generation
        return {
            "count": self.count,
            "nonfinite": self.nonfinite,
            "metrics": self._model.means(),
            "baseline": {"mean_hand": baseline.means()} if baseline else {},
            **({"generation": generation.means()} if generation else {}),
            "confidence": self._model.by_confidence(),
        }

    def state(self) -> split_shares.Arrays:
        """Return all sums, for `merge`."""
        parts = {name: part.state() for name, part in self._parts().items()}
        indices = np.concatenate([np.zeros(0, np.int64), *self.indices])
        nonfinite = np.array(self.nonfinite)
        return {
            "indices": indices,
            "nonfinite": nonfinite,
            **split_shares.packed(parts),
        }

    def merge(self, state: split_shares.Arrays) -> None:
        """Add the sums of another process."""
        self.indices.append(state["indices"])
        self.nonfinite += int(state["nonfinite"])
        for name, part in self._parts().items():
            part.merge(split_shares.unpacked(state, name))

    def _parts(self) -> dict[str, Any]:
        parts = dict(
            model=self._model, baseline=self._baseline, generation=self._generation
        )
        return {name: part for name, part in parts.items() if part is not None}


def _scored_fields(
    batch: Batch, output: HandOutput, answers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what errors are made of, and in which rows of the batch it is finite."""
    for name in ("joints3d", "vertices"):
        known = np.asarray(getattr(batch, f"{name}_valid"))
        yield f"annotated {name}", _finite_rows(getattr(batch, name)) | ~known
        rows = _finite_rows(getattr(output, name))
        yield f"predicted {name}", rows.reshape(answers, -1).all(axis=0)
    if output.confidence is not None:
        rows = _finite_rows(output.confidence)
        yield "predicted confidence", rows.reshape(answers, -1).all(axis=0)


def _finite_rows(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)


def _repeated(batch: Batch, times: int) -> Batch:
    """Repeat the batch's truth once per answer; images dropped."""
    if times == 1:
        return batch
    truth = batch._replace(image=None)
    return jax.tree.map(lambda x: np.concatenate([x] * times), truth)
