"""Measure a trained model, or score a file of anybody's predictions.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handjax.config import flags
from handjax.errors import UserError
from handjax.evaluation import protocols
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

_WAITING = "share {}/{} is done; whoever finishes last puts all together"


def _parser() -> Parser:
    parser = Parser("evaluate", __doc__)
    flags.add_overrides(parser.add_argument_group("config"))
    add = parser.add_argument
    add("--workdir", help="directory of a trained model")
    add("--stage", help="training stage; default: the last one")
    add("--step", type=at_least(0), help="checkpoint; default: the newest one")
    add(
        "--share",
        help="evaluate one of several shares of the split, each in a process (or on a "
        "machine) of its own: 0/4 to 3/4; the last to finish puts them together",
    )
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
    add(
        "--skip_nonfinite",
        action="store_true",
        help="leave out hands with nan or infinite values and count them; without it "
        "the first one is named and ends the evaluation",
    )
    add("--check", action="store_true", help="only look whether --predictions is sound")
    add(
        "--output",
        help="folder of a benchmark's scores; default: that of --predictions, or "
        "eval/<step> of the workdir",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; return the exit code."""
    return command_line.run(lambda: _evaluate(flags.parse(_parser(), argv)))


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.predictions:
        return _score_file(arguments)
    if arguments.benchmark:
        return _submit(arguments)
    return _report(arguments)


def evaluate(
    workdir: str | Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    split: str = "test",
    procrustes: str = "freihand",
    tta: str | None = None,
    skip_nonfinite: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a trained model on a split of its data.

    >>> import handjax
    >>> report = handjax.evaluate("runs/few")
    >>> report["family"], report["step"], report["count"]
    ('simplehand', 2, 16)
    >>> report["metrics"]["pa_mpjpe_mm"] > 0
    True

    Args:
        workdir: Directory of the run.
        stage: Training stage; None for the last one.
        step: Checkpoint; None for the newest one.
        split: Split of the data set.
        procrustes: Alignment of the PA metrics; see `handjax evaluate --help`.
        tta: Test-time augmentation; see `handjax evaluate --help`.
        skip_nonfinite: Whether hands with nan or infinite values are left out and
            counted under "nonfinite".
        changes: Other values of keys of the config, such as {"eval.num": 100}.

    Returns:
        What `workdir`/eval/<step>/<benchmark>.json holds: errors in millimetres under
        "metrics", those of the mean hand under "baseline".

    Raises:
        UserError: There is no such checkpoint, or no such data; says what there is.
        HandjaxError: Names a hand with nan or infinite values.
    """
    from handjax.evaluation import report, trained_model

    found = trained_model.load(workdir, stage, step, list((changes or {}).items()))
    made, _ = report.make(
        found,
        split=split,
        procrustes=procrustes,
        tta_mode=tta,
        skip_nonfinite=skip_nonfinite,
    )
    assert made is not None  # only one of several shares has none yet
    return made


def _score_file(arguments: argparse.Namespace) -> int:
    """Score or check `--predictions`; 1 if a check finds something."""
    _check_scoring(arguments)
    from handjax.evaluation import score_files

    benchmark = protocols.load(arguments.benchmark)
    path = Path(arguments.predictions)
    if arguments.check:
        found = benchmark.check(benchmark.read_predictions(path))
        print(f"{path}: {'nothing' if not found else len(found)} to remark")
        print("".join(f"  {text}\n" for text in found), end="")
        return 1 if found else 0
    procrustes = score_files.alignment(benchmark, arguments.procrustes)
    options = score_files.settings(benchmark, _options(arguments))
    # Predictions first: it is they that are usually wrong, and they are read faster.
    predictions = benchmark.read_predictions(path)
    report = score_files.report(
        benchmark,
        benchmark.read_truth(Path(arguments.truth), **options),
        predictions,
        procrustes=procrustes,
        options=options,
        file=path,
    )
    name = score_files.file_stem(benchmark, procrustes, options)
    folder = Path(arguments.output or path.parent)
    written, _ = score_files.write(report, folder / f"{path.stem}_{name}")
    print(score_files.table(report))
    print(f"written to {written}")
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return the flags that only some benchmarks have."""
    return {"split": arguments.split, "setup": arguments.setup}


def _check_scoring(arguments: argparse.Namespace) -> None:
    """Refuse flags that mean nothing for a file of predictions."""
    if not arguments.benchmark:
        raise UserError(
            "--predictions needs --benchmark, one of " + ", ".join(protocols.names())
        )
    for flag in ("workdir", "stage", "step", "tta", "share"):
        if getattr(arguments, flag) is not None:
            raise UserError(f"--{flag} is of models; leave it out with --predictions.")
    if arguments.skip_nonfinite:
        raise UserError("--skip_nonfinite is of models; leave it out.")
    for key, _ in arguments.overrides:
        raise UserError(
            f"--config.{key} is of models; leave it out with --predictions."
        )
    if not (arguments.truth or arguments.check):
        truth = protocols.load(arguments.benchmark).truth
        raise UserError(
            f"--truth is missing. {truth} Or only look at the file: --check."
        )


def _report(arguments: argparse.Namespace) -> int:
    """Measure a model on a split of its own data."""
    _check_workdir(arguments)
    for flag in ("truth", "setup", "output", "check"):
        if getattr(arguments, flag):
            raise UserError(f"--{flag} is of benchmarks; name one with --benchmark.")
    from handjax.distributed import split_shares
    from handjax.evaluation import trained_model
    from handjax.evaluation.report import make, table

    share = split_shares.parse(arguments.share)
    found = trained_model.load(
        arguments.workdir, arguments.stage, arguments.step, arguments.overrides
    )
    print(found.describe(), flush=True)
    report, path = make(
        found,
        split=arguments.split or "test",
        procrustes=arguments.procrustes or "freihand",
        tta_mode=arguments.tta,
        share=share,
        skip_nonfinite=arguments.skip_nonfinite,
    )
    if report is None:
        print(_WAITING.format(*share))
        return 0
    print(table(report))
    print(f"written to {path}")
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    """Write a model's predictions on `--benchmark`; score them with `--truth`."""
    _check_workdir(arguments)
    if arguments.skip_nonfinite:
        raise UserError(
            "--skip_nonfinite: a file of predictions needs every hand; leave one of "
            "it and --benchmark out."
        )
    from handjax.distributed import split_shares
    from handjax.evaluation import score_files, submission, trained_model
    from handjax.evaluation.report import Progress

    benchmark = protocols.load(arguments.benchmark)
    score_files.alignment(benchmark, arguments.procrustes)
    options = _options(arguments)
    if "split" not in benchmark.settings:
        options["split"] = None  # of the data set, not of the protocol
    score_files.settings(benchmark, options)
    found = trained_model.load(
        arguments.workdir, arguments.stage, arguments.step, arguments.overrides
    )
    submission.check(benchmark, found, arguments.tta)
    print(found.describe(), flush=True)
    share = split_shares.parse(arguments.share)
    folder = Path(
        arguments.output or Path(arguments.workdir) / "eval" / str(found.step)
    )
    hands = submission.predicted(
        found,
        folder,
        share=share,
        split=arguments.split or "test",
        tta_mode=arguments.tta,
        on_batch=Progress(),
    )
    if hands is None:
        print(_WAITING.format(*share))
        return 0
    report, path = submission.write(
        benchmark,
        hands,
        folder,
        truth=Path(arguments.truth) if arguments.truth else None,
        procrustes=arguments.procrustes,
        options=options,
        tta_mode=arguments.tta,
        said=found.provenance(),
    )
    if report:
        print(score_files.table(report))
    else:
        for text in benchmark.check(benchmark.read_predictions(path)):
            print(f"  remark: {text}")
        print(f"not scored: --truth is missing. {benchmark.truth}")
    print(f"predictions written to {path}")
    return 0


def _check_workdir(arguments: argparse.Namespace) -> None:
    if not arguments.workdir:
        raise UserError(
            "pass --workdir of a trained model, or --benchmark and --predictions."
        )


# `handjax.evaluate(workdir)` is `evaluate` above.
sys.modules[__name__].__class__ = command_line.CallableEntry

if __name__ == "__main__":
    sys.exit(main())
