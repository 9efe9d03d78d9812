"""Measure a trained model on a split.

    python -m handjax.evaluate --workdir W
    python -m handjax.evaluate --workdir W --procrustes proper --config.data.dir=DIR
    python -m handjax.evaluate --workdir W --tta released --config.eval.num=100

Prints a table (millimetres; F-scores and areas as fractions) and writes
`W/eval/<step>/<benchmark>.json`. Beside the model stand the mean hand, which never sees
the picture, and, for models that predict tokens, the tokenizer's reconstruction of
the true mesh, which is the floor of their error.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
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
    tta_mode: str | None = None,
    on_batch: "Callable[[int], None] | None" = None,
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
    import functools

    import jax

    from handjax import tta
    from handjax.mean_hand import MeanHandSums
    from handjax.metrics import GenerationSums, MetricSums

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


def _repeated(batch: "Batch", times: int) -> "Batch":
    """The truth of each answer: the batch again and again, without its pictures."""
    import jax
    import numpy as np

    if times == 1:
        return batch
    truth = batch._replace(image=None)
    return jax.tree.map(lambda x: np.concatenate([x] * times), truth)


# --- entry --------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m handjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE changes a key of the config, e.g. of its data.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="directory of a trained model")
    add("--stage", help="training stage; default: the last one")
    add("--step", type=int, help="checkpoint; default: the newest one")
    add("--split", default="test", help="split of the data set; default: test")
    add(
        "--procrustes",
        default="freihand",
        choices=("freihand", "proper"),
        help="alignment of the PA metrics: reflections allowed, as FreiHAND's official "
        "script does, or rotations only",
    )
    add(
        "--tta",
        choices=("released", "paper", "mean"),
        help="test-time augmentation: 95 views of each hand (19 angles x 5 scales), "
        "fused as in Hamba's release, their errors averaged as in its paper, or simply "
        "averaged; takes 95 times as long (--config.eval.num=N: the first N hands)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments, rest = _parser().parse_known_args(argv)
    from handjax.command_line import UsageError

    try:
        report, path = run(arguments, _overrides(rest))
    except (OSError, ValueError, UsageError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(report))
    print(f"written to {path}")
    return 0


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    from handjax.command_line import UsageError

    pairs = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config.") or not equals:
            raise UsageError(
                f"{argument!r} belongs to no flag; see --help. Keys of the config are "
                "given as --config.KEY=VALUE."
            )
        pairs.append((name.removeprefix("--config."), value))
    return pairs


def run(
    arguments: argparse.Namespace, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], Path]:
    """Evaluate as the command line says; returns the report and where it stands."""
    from handjax import (
        checkpoints,
        command_line,
        data,
        files,
        mano_files,
        mean_hand,
        models,
        tta,
    )
    from handjax.config import LABELLED_POSES
    from handjax.metrics import PROTOCOLS

    # Orbax tells absl's log about every default it takes.
    logging.getLogger("absl").setLevel(logging.ERROR)
    config, model, variables, name, step = checkpoints.load_for_inference(
        arguments.workdir,
        arguments.stage,
        arguments.step,
        change=lambda config: command_line.override(config, overrides),
    )
    stages = models.load(config.family).stages(config)
    stage = next(s for s in stages if s.name == name)
    if arguments.tta and not stage.needs_image:
        raise ValueError(
            f"--tta={arguments.tta}: stage {name!r} sees no picture that could be "
            "turned; leave --tta out, or evaluate a stage that does."
        )
    hand_file = mano_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    opened = data.open_data(config, hand_file)
    print(f"{config.family}, stage {name}, step {step}; data: {opened.describe()}")
    augmentation = tta.describe(arguments.tta)
    if augmentation:
        print(
            f"{_tta_line(augmentation)}; a word after every "
            f"{config.eval.batch_size} hands (config.eval.batch_size)",
            flush=True,
        )
    options = dict(
        root=hand_file.skeleton.roots[config.data.root], procrustes=arguments.procrustes
    )
    mean = mean_hand.fit(opened.train_split(stage))
    result = evaluate_stage(
        model,
        variables,
        stage,
        opened.evaluation(stage, split=arguments.split),
        mean_hand=mean,
        tta_mode=arguments.tta,
        on_batch=_Progress(),
        generated=config.stages[name].data == LABELLED_POSES,
        **options,
    )
    if stage.needs_image:
        result["floor"] = {
            s.name: evaluate_stage(
                model,
                variables,
                s,
                opened.evaluation(s, split=arguments.split),
                **options,
            )["metrics"]
            for s in stages
            if not s.needs_image
        }
    benchmark = benchmark_name(config, stage, stages, arguments)
    report = {
        "benchmark": benchmark,
        "protocol": PROTOCOLS[arguments.procrustes],
        "tta": augmentation,
        "definitions": _definitions(config, mean),
        "family": config.family,
        "stage": name,
        "step": step,
        "changed": dict(overrides),  # keys of the config that are not the run's
        **result,
    }
    path = Path(arguments.workdir) / "eval" / str(step) / f"{benchmark}.json"
    files.write_json(path, report)
    return report, path


def benchmark_name(config: Any, stage: "Stage", stages, arguments) -> str:
    """Data set and split; earlier stages, the other protocol and TTA are told apart."""
    from handjax.config import evaluated_on

    parts = [evaluated_on(config, stage.name), arguments.split]
    if stage.name != stages[-1].name:
        parts.append(stage.name)
    if arguments.procrustes != "freihand":
        parts.append(arguments.procrustes)
    if arguments.tta:
        parts.append(f"tta_{arguments.tta}")
    return "_".join(parts)


def _definitions(config: Any, mean: "MeanHand | None") -> dict[str, str]:
    """What the numbers mean, in the file that holds them."""
    used = f"the first {mean.count} training hands" if mean else "no training hand"
    return {
        "pa": "joints and vertices aligned separately by a similarity transform",
        "root": f"mpjpe and mpvpe: after subtracting the {config.data.root} joint",
        "f": "aligned vertices, nearest neighbours both ways, under 5 and 15 mm",
        "generation": "Hausdorff in metres and squared Chamfer in square metres (sum "
        "of both directions), of vertices after subtracting the root",
        "auc": "aligned points, 0 to 50 mm, 100 thresholds, trapezoids",
        "mean_hand": f"of {used}: root-relative average (mpjpe, mpvpe), generalised "
        "Procrustes mean (others)",
        "floor": "reconstruction of the true mesh by the stages that see no image",
        "confidence": "mean errors of the tenth of the hands that the model is surest "
        "of (HandOutput.confidence), and of the tenth that it is least sure of",
    }


class _Progress:
    """A line every few seconds, so that a long evaluation shows it is alive."""

    def __init__(self, every_s: float = 5.0):
        self._every_s = every_s
        self._start = self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            rate = count / (now - self._start)
            print(f"{count} hands, {rate:.3g} a second", flush=True)


def table(report: dict[str, Any]) -> str:
    """Model, floor and baseline under each other."""
    rows = [("mean hand", m) for m in report["baseline"].values()]
    rows.append((f"{report['family']} {report['stage']}", report["metrics"]))
    for tenth, metrics in (report.get("confidence") or {}).items():
        rows.append((f"{tenth.replace('_', ' ')} tenth", metrics))
    rows += [(f"floor: {k}", m) for k, m in report.get("floor", {}).items()]
    width = max(len(name) for name, _ in rows) + 2
    names = list(report["metrics"])
    lines = [
        f"{report['benchmark']}: {report['count']} hands, {report['protocol']}",
        *([_tta_line(report["tta"])] if report["tta"] else []),
        " " * width + "".join(f"{name:>14}" for name in names),
    ]
    for name, metrics in rows:
        cells = (_cell(key, metrics.get(key)) for key in names)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    lines += [
        f"generated hands, {key}: {value['mean']:.4g} +- {value['std']:.4g}"
        for key, value in report.get("generation", {}).items()
        if value
    ]
    return "\n".join(lines)


def _tta_line(said: dict[str, Any]) -> str:
    return "test-time augmentation {mode!r}, {views} views: {what}".format(**said)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name.endswith("_mm") else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
