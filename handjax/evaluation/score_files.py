"""Score or check a file of predictions by a benchmark's protocol; reports and tables.

A report is the JSON that evaluation writes: benchmark, protocol, options, count, the
script's own `scores` with units, and the `metrics` of handjax among them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handjax.errors import UserError
from handjax.evaluation.protocols import Benchmark, Score
from handjax.io import atomic_files
from handjax.metrics.mesh_errors import PROTOCOLS


def alignment(benchmark: Benchmark, procrustes: str | None) -> str:
    """Return the benchmark's own alignment, or the requested one.

    Raises:
        UserError: The benchmark aligns nothing, or not like that.
    """
    if procrustes is None:
        return next(iter(benchmark.alignments), "")
    if procrustes not in benchmark.alignments:
        allowed = " or ".join(benchmark.alignments)
        raise UserError(
            f"procrustes={procrustes!r}: {benchmark.name} "
            + (f"knows {allowed}." if allowed else "aligns nothing; leave it out.")
        )
    return procrustes


def settings(benchmark: Benchmark, given: Mapping[str, str | None]) -> dict[str, str]:
    """Return a benchmark's options: the given ones, and defaults of the others.

    Raises:
        UserError: The benchmark has no such option, or no such value of it.
    """
    chosen = {name: allowed[0] for name, allowed in benchmark.settings.items()}
    for name, value in given.items():
        if value is None:
            continue
        if name not in chosen:
            raise UserError(
                f"{name}={value!r}: {benchmark.name} has no such option; leave it out."
            )
        if value not in benchmark.settings[name]:
            allowed = ", ".join(benchmark.settings[name])
            raise UserError(f"{name}={value!r}: {benchmark.name} has {allowed}.")
        chosen[name] = value
    return chosen


def describe(benchmark: Benchmark, procrustes: str, options: Mapping[str, str]) -> str:
    """Return name and options of a protocol in one line, for tables and files."""
    parts = [f"{benchmark.name} by {benchmark.about}"]
    if procrustes:
        parts.append(PROTOCOLS[procrustes])
    parts += [f"{name}={value}" for name, value in options.items()]
    return ", ".join(parts)


def report(
    benchmark: Benchmark,
    truth: Any,
    predictions: Any,
    *,
    procrustes: str,
    options: Mapping[str, str],
    file: Path,
) -> dict[str, Any]:
    """Score one file of predictions; return the scores and what defines them.

    Args:
        benchmark: Benchmark whose protocol is used.
        truth: Result of its `read_truth`.
        predictions: Result of its `read_predictions`.
        procrustes: Result of `alignment`.
        options: Result of `settings`.
        file: File that the predictions come from.

    Raises:
        UserError: Truth and predictions do not fit; says how.
    """
    scores = benchmark.scores(truth, predictions, procrustes=procrustes)
    count = benchmark.count(truth, predictions)
    return {
        "benchmark": benchmark.name,
        "protocol": describe(benchmark, procrustes, options),
        "options": {**({"procrustes": procrustes} if procrustes else {}), **options},
        "count": count.scored,
        "annotated": count.annotated,
        "predictions": {"file": str(file), "sha256": _sha256(file)},
        "remarks": benchmark.check(predictions),
        "scores": {name: score._asdict() for name, score in scores.items()},
        "metrics": benchmark.metrics(scores),
        "baseline": {},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stem(benchmark: Benchmark, procrustes: str, options: Mapping[str, str]) -> str:
    """Return the name of a report's files, with options that are not the default."""
    default = {**settings(benchmark, {}), "procrustes": alignment(benchmark, None)}
    given = {"procrustes": procrustes, **options}
    return "_".join([benchmark.name, *(v for k, v in given.items() if v != default[k])])


def write(report: dict[str, Any], stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.json`, and `<stem>_scores.txt` as the official scripts do."""
    lines = [
        f"{name}: {'nan' if score['value'] is None else format(score['value'], 'f')}\n"
        for name, score in report["scores"].items()
    ]
    text = stem.with_name(f"{stem.name}_scores.txt")
    atomic_files.write_bytes(text, "".join(lines).encode())
    path = stem.with_name(f"{stem.name}.json")
    atomic_files.write_json(path, report)
    return path, text


def table(report: dict[str, Any]) -> str:
    """Format every score with its unit and its protocol."""
    number = f"{report['count']:,}"
    if report["annotated"] != report["count"]:
        number += f" of {report['annotated']:,}"
    head = f"{report['protocol']}: {number} samples"
    lines = [f"{head} of {report['predictions']['file']}"]
    if report.get("tta"):
        lines.append(tta_line(report["tta"]))
    width = max(len(name) for name in report["scores"])
    short = ", ".join(f"{k}={v}" for k, v in report["options"].items())
    for name, values in report["scores"].items():
        score = Score(**values)
        value = "-" if score.value is None else f"{score.value:.4f}"
        unit = score.unit if score.value is not None else ""
        said = dict.fromkeys([report["benchmark"], *short.split(", "), score.protocol])
        lines.append(
            f"  {name:<{width}} {value:>10} {unit:<2}  {', '.join(filter(None, said))}"
        )
    return "\n".join(lines + [f"  remark: {text}" for text in report["remarks"]])


def tta_line(said: Mapping[str, Any]) -> str:
    """Return in words what `tta.describe` returns."""
    return "test-time augmentation {mode!r}, {views} views: {what}".format(**said)
