"""Measure a trained model on a split, or score a file of predictions of anybody.

    python -m handjax.evaluate --workdir W
    python -m handjax.evaluate --workdir W --procrustes proper --config.data.dir=DIR
    python -m handjax.evaluate --workdir W --tta released --config.eval.num=100
    python -m handjax.evaluate --benchmark freihand --predictions pred.json --truth DIR
    python -m handjax.evaluate --benchmark ho3d_v2 --predictions pred.zip --check
    python -m handjax.evaluate --benchmark freihand --workdir W --truth DIR

Prints a table (millimetres; F-scores and areas as fractions) and writes
`W/eval/<step>/<benchmark>.json`. Beside the model stand the mean hand, which never sees
the picture, and, for models that predict tokens, the tokenizer's reconstruction of
the true mesh, which is the floor of their error.

With --benchmark the numbers are those of the benchmark's official script, under its
names; a model's predictions are written in the benchmark's format, too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handjax import protocols
from handjax.command_line import UsageError

if TYPE_CHECKING:
    from handjax.mean_hand import MeanHand
    from handjax.stages import Stage
    from handjax.trained import Trained


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
    add("--workdir", help="directory of a trained model")
    add("--stage", help="training stage; default: the last one")
    add("--step", type=int, help="checkpoint; default: the newest one")
    add("--split", help="split of the data set; default: test")
    add(
        "--procrustes",
        choices=("freihand", "proper", "hamer", "metro"),
        help="alignment of the PA metrics: reflections allowed, as the official "
        "scripts of FreiHAND, HO3D and DexYCB do, or rotations only, as the code of "
        "HaMeR and METRO does and most papers on DexYCB; default: freihand",
    )
    add(
        "--tta",
        choices=("released", "paper", "mean"),
        help="test-time augmentation: 95 views of each hand (19 angles x 5 scales), "
        "fused as in Hamba's release, their errors averaged as in its paper, or simply "
        "averaged; takes 95 times as long (--config.eval.num=N: the first N hands)",
    )
    add(
        "--benchmark",
        choices=protocols.names(),
        help="score by this benchmark's official protocol",
    )
    add("--predictions", help="file to score, in the benchmark's format: any system's")
    add("--truth", help="folder of the benchmark's ground truth, as published")
    add("--setup", help="of dexycb: s0 (default), s1, s2 or s3")
    add("--check", action="store_true", help="only look whether --predictions is sound")
    add(
        "--output",
        help="folder of a benchmark's scores; default: that of --predictions, or "
        "eval/<step> of the workdir",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments, rest = _parser().parse_known_args(argv)
    try:
        if arguments.predictions:
            return _score_file(arguments, rest)
        if arguments.benchmark:
            return _submit(arguments, _overrides(rest))
        report, path = run(arguments, _overrides(rest))
    except (OSError, ValueError, UsageError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(report))
    print(f"written to {path}")
    return 0


def _score_file(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Score or check `--predictions`; 1 if a check finds something."""
    _check_scoring(arguments, rest)
    from handjax import scoring

    benchmark = protocols.load(arguments.benchmark)
    path = Path(arguments.predictions)
    if arguments.check:
        found = benchmark.check(benchmark.read_predictions(path))
        print(f"{path}: {'nothing' if not found else len(found)} to remark")
        print("".join(f"  {text}\n" for text in found), end="")
        return 1 if found else 0
    procrustes = scoring.alignment(benchmark, arguments.procrustes)
    options = scoring.settings(benchmark, _options(arguments))
    # Predictions first: it is they that are usually wrong, and they are read faster.
    predictions = benchmark.read_predictions(path)
    report = scoring.report(
        benchmark,
        benchmark.read_truth(Path(arguments.truth), **options),
        predictions,
        procrustes=procrustes,
        options=options,
        file=path,
    )
    name = scoring.file_stem(benchmark, procrustes, options)
    folder = Path(arguments.output or path.parent)
    written, _ = scoring.write(report, folder / f"{path.stem}_{name}")
    print(scoring.table(report))
    print(f"written to {written}")
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Flags that only some benchmarks have."""
    return {"split": arguments.split, "setup": arguments.setup}


def _check_scoring(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuse flags that mean nothing for a file of predictions."""
    if not arguments.benchmark:
        raise UsageError(
            "--predictions needs --benchmark, one of " + ", ".join(protocols.names())
        )
    for flag in ("workdir", "stage", "step", "tta"):
        if getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag} is of models; leave it out with --predictions.")
    if rest:
        raise UsageError(f"{rest[0]!r} is of models; leave it out with --predictions.")
    if not (arguments.truth or arguments.check):
        truth = protocols.load(arguments.benchmark).truth
        raise UsageError(
            f"--truth is missing. {truth} Or only look at the file: --check."
        )


def _submit(arguments: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    """Write a model's predictions on `--benchmark`; score them with `--truth`."""
    _check_workdir(arguments)
    from handjax import scoring, submission, trained

    benchmark = protocols.load(arguments.benchmark)
    scoring.alignment(benchmark, arguments.procrustes)
    options = _options(arguments)
    if "split" not in benchmark.settings:
        options["split"] = None  # of the data set, not of the protocol
    scoring.settings(benchmark, options)
    found = trained.load(arguments.workdir, arguments.stage, arguments.step, overrides)
    submission.check(benchmark, found, arguments.tta)
    print(found.describe(), flush=True)
    report, path = submission.write(
        benchmark,
        submission.predicted(
            found,
            split=arguments.split or "test",
            tta_mode=arguments.tta,
            on_batch=_Progress(),
        ),
        Path(arguments.output or Path(arguments.workdir) / "eval" / str(found.step)),
        truth=Path(arguments.truth) if arguments.truth else None,
        procrustes=arguments.procrustes,
        options=options,
        tta_mode=arguments.tta,
        said=_said(found, overrides),
    )
    if report:
        print(scoring.table(report))
    else:
        for text in benchmark.check(benchmark.read_predictions(path)):
            print(f"  remark: {text}")
        print(f"not scored: --truth is missing. {benchmark.truth}")
    print(f"predictions written to {path}")
    return 0


def _check_workdir(arguments: argparse.Namespace) -> None:
    if not arguments.workdir:
        raise UsageError(
            "pass --workdir of a trained model, or --benchmark and --predictions."
        )


def _said(found: "Trained", overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Which model it is, in the file that holds its numbers."""
    return {
        "family": found.config.family,
        "stage": found.stage.name,
        "step": found.step,
        "changed": dict(overrides),  # keys of the config that are not the run's
    }


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
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
    _check_workdir(arguments)
    from handjax import files, mean_hand, trained, tta
    from handjax.config import LABELLED_POSES
    from handjax.evaluation import evaluate_stage
    from handjax.metrics import PROTOCOLS
    from handjax.scoring import tta_line

    split, procrustes = arguments.split or "test", arguments.procrustes or "freihand"
    found = trained.load(arguments.workdir, arguments.stage, arguments.step, overrides)
    config, stage, opened = found.config, found.stage, found.data
    if arguments.tta and not stage.needs_image:
        raise ValueError(
            f"--tta={arguments.tta}: stage {stage.name!r} sees no picture that could "
            "be turned; leave --tta out, or evaluate a stage that does."
        )
    print(found.describe())
    augmentation = tta.describe(arguments.tta)
    if augmentation:
        print(
            f"{tta_line(augmentation)}; a word after every "
            f"{config.eval.batch_size} hands (config.eval.batch_size)",
            flush=True,
        )
    options = dict(root=found.root, procrustes=procrustes)
    mean = mean_hand.fit(opened.train_split(stage))
    result = evaluate_stage(
        found.model,
        found.variables,
        stage,
        opened.evaluation(stage, split=split),
        mean_hand=mean,
        tta_mode=arguments.tta,
        on_batch=_Progress(),
        generated=config.stages[stage.name].data == LABELLED_POSES,
        **options,
    )
    if stage.needs_image:
        result["floor"] = {
            s.name: evaluate_stage(
                found.model,
                found.variables,
                s,
                opened.evaluation(s, split=split),
                **options,
            )["metrics"]
            for s in found.stages
            if not s.needs_image
        }
    benchmark = benchmark_name(config, stage, found.stages, arguments)
    report = {
        "benchmark": benchmark,
        "protocol": PROTOCOLS[procrustes],
        "tta": augmentation,
        "definitions": _definitions(config, mean),
        **_said(found, overrides),
        **result,
    }
    path = Path(arguments.workdir) / "eval" / str(found.step) / f"{benchmark}.json"
    files.write_json(path, report)
    return report, path


def benchmark_name(config: Any, stage: "Stage", stages, arguments) -> str:
    """Data set and split; earlier stages, the other protocol and TTA are told apart."""
    from handjax.config import evaluated_on

    parts = [evaluated_on(config, stage.name), arguments.split or "test"]
    if stage.name != stages[-1].name:
        parts.append(stage.name)
    if arguments.procrustes not in (None, "freihand"):
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
    from handjax.scoring import tta_line

    rows = [("mean hand", m) for m in report["baseline"].values()]
    rows.append((f"{report['family']} {report['stage']}", report["metrics"]))
    for tenth, metrics in (report.get("confidence") or {}).items():
        rows.append((f"{tenth.replace('_', ' ')} tenth", metrics))
    rows += [(f"floor: {k}", m) for k, m in report.get("floor", {}).items()]
    width = max(len(name) for name, _ in rows) + 2
    names = list(report["metrics"])
    lines = [
        f"{report['benchmark']}: {report['count']} hands, {report['protocol']}",
        *([tta_line(report["tta"])] if report["tta"] else []),
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


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name.endswith("_mm") else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
