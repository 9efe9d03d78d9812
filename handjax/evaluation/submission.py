"""Write a model's predictions on a benchmark for its official scorer, and score them.

    <folder>/<benchmark>_pred.zip      (or what the benchmark takes)
    <folder>/<benchmark>.json          with the ground truth: the report
    <folder>/<benchmark>_scores.txt

The score is computed from the file, so that a server gives the same.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from handjax.distributed import split_shares
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.errors import UserError
from handjax.evaluation import photo_frame, score_files
from handjax.evaluation.protocols import Benchmark, PhotoHands
from handjax.evaluation.trained_model import Trained
from handjax.inference import tta


def predicted(
    trained: Trained,
    folder: Path,
    *,
    share: ProcessShare = WHOLE,
    split: str,
    tta_mode: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> PhotoHands | None:
    """Predict the hands of a split in their photos' cameras, in its order.

    Args:
        trained: The model and its data.
        folder: Folder that processes write their shares to.
        share: Share that this process predicts.
        split: Split of the data.
        tta_mode: A key of `tta.MODES`; None predicts once.
        on_batch: Called with the number of hands so far.

    Returns:
        The hands; None while shares of other processes are missing.

    Raises:
        UserError: Examples are missing or counted more than once.
    """
    function = tta.augmented(trained.stage.predict_fn, tta_mode)
    hands, index = photo_frame.collect(
        jax.jit(functools.partial(function, trained.model)),
        trained.variables,
        trained.data.evaluation(trained.stage, split=split, share=share),
        trained.data.records(split),
        root=trained.root,
        on_batch=on_batch,
    )
    state = {"index": index, **photo_frame.arrays(hands)}
    name = "_".join(["hands", trained.config.data.name, split, tta_mode or "plain"])
    about = trained.cache_key(split=split, tta=tta_mode)
    parts = split_shares.gather_parts(folder, name, share, state, about)
    if parts is None:
        return None
    index = np.concatenate([part["index"] for part in parts])
    split_shares.check_whole(index, trained.data.evaluation_count(trained.stage, split))
    return photo_frame.joined(
        [photo_frame.from_arrays(part) for part in parts], np.argsort(index)
    )


def check(benchmark: Benchmark, trained: Trained, tta_mode: str | None) -> None:
    """Refuse a run that cannot give a file of predictions.

    Raises:
        UserError: The data are of another benchmark, the stage sees no pictures, or
            the augmentation averages errors.
    """
    name = trained.config.data.name
    if name != benchmark.name:
        raise UserError(
            f"--benchmark={benchmark.name} needs its pictures, and the data are "
            f"{name!r}; pass --config.data.name={benchmark.name} "
            "--config.data.dir=DIR, made by `python -m data_pipelines.prepare "
            f"{benchmark.name}`."
        )
    if not trained.stage.needs_image:
        raise UserError(
            f"stage {trained.stage.name!r} sees no picture; evaluate one that does."
        )
    if tta_mode and tta.answers_per_hand(tta_mode) > 1:
        raise UserError(
            f"--tta={tta_mode} averages errors, and a file of predictions holds one "
            "hand for each sample; take 'released' or 'mean'."
        )


def write(
    benchmark: Benchmark,
    hands: PhotoHands,
    folder: Path,
    *,
    truth: Path | None,
    procrustes: str | None,
    options: Mapping[str, str | None],
    tta_mode: str | None = None,
    said: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any] | None, Path]:
    """Write the file of predictions and, with the ground truth, score it.

    Args:
        benchmark: Benchmark with format and protocol.
        hands: Result of `predicted`.
        folder: Where to write.
        truth: Path as the benchmark's `truth` says; None only writes and checks.
        procrustes: None for the benchmark's own.
        options: Result of `score_files.settings`.
        tta_mode: How the hands were found, for names and reports.
        said: Further fields of the report: model, stage, step.

    Returns:
        The report, None without the truth, and the path of the predictions.
    """
    chosen = score_files.settings(benchmark, options)
    procrustes = score_files.alignment(benchmark, procrustes)
    known = None if truth is None else benchmark.read_truth(truth, **chosen)
    stem = score_files.file_stem(benchmark, procrustes, chosen)
    if tta_mode:
        stem += f"_tta_{tta_mode}"
    path = folder / f"{stem}_{benchmark.file_name}"
    benchmark.write(path, benchmark.from_hands(hands, known))
    if known is None:
        return None, path
    report = score_files.report(
        benchmark,
        known,
        benchmark.read_predictions(path),
        procrustes=procrustes,
        options=chosen,
        file=path,
    )
    report |= {"tta": tta.describe(tta_mode), **(said or {})}
    score_files.write(report, folder / stem)
    return report, path
