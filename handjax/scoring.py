"""Score or check a file of predictions by a benchmark's protocol; reports and tables.

A report is the JSON that evaluation writes: benchmark, protocol, options, count, the
script's own `scores` with units, and those of them that are `metrics` of handjax.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handjax import files, protocols
from handjax.metrics import PROTOCOLS
from handjax.protocols import Benchmark, Score


def alignment(benchmark: Benchmark, procrustes: str | None) -> str:
    """The benchmark's own alignment, or the one that is asked for.

    Raises:
        ValueError: The benchmark aligns nothing, or not like that.
    """
    if procrustes is None:
        return next(iter(benchmark.alignments), "")
    if procrustes not in benchmark.alignments:
        allowed = " or ".join(benchmark.alignments)
        raise ValueError(
            f"procrustes={procrustes!r}: {benchmark.name} "
            + (f"knows {allowed}." if allowed else "aligns nothing; leave it out.")
        )
    return procrustes


def settings(benchmark: Benchmark, given: Mapping[str, str | None]) -> dict[str, str]:
    """Options of a benchmark: those that are given, and the defaults of the others.

    Raises:
        ValueError: The benchmark has no such option, or no such value of it.
    """
    chosen = {name: allowed[0] for name, allowed in benchmark.settings.items()}
    for name, value in given.items():
        if value is None:
            continue
        if name not in chosen:
            raise ValueError(
                f"{name}={value!r}: {benchmark.name} has no such option; leave it out."
            )
        if value not in benchmark.settings[name]:
            allowed = ", ".join(benchmark.settings[name])
            raise ValueError(f"{name}={value!r}: {benchmark.name} has {allowed}.")
        chosen[name] = value
    return chosen


def describe(benchmark: Benchmark, procrustes: str, options: Mapping[str, str]) -> str:
    """Name and options of a protocol in one line, for tables and files."""
    parts = [f"{benchmark.name} by {benchmark.about}"]
    if procrustes:
        parts.append(PROTOCOLS[procrustes])
    parts += [f"{name}={value}" for name, value in options.items()]
    return ", ".join(parts)


def score(
    benchmark: Benchmark,
    predictions: Path,
    truth: Path,
    *,
    procrustes: str | None = None,
    options: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """The report of one file of predictions.

    Args:
        benchmark: Whose protocol is used.
        predictions: In its format.
        truth: What its `truth` says.
        procrustes: None for the benchmark's own.
        options: Of `settings`.

    Raises:
        ValueError: Something does not fit; says what.
        OSError: A file cannot be read.
    """
    procrustes = alignment(benchmark, procrustes)
    chosen = settings(benchmark, options or {})
    # Predictions first: it is they that are usually wrong, and they are read faster.
    predicted = benchmark.read_predictions(predictions)
    real = benchmark.read_truth(truth, **chosen)
    found = benchmark.scores(real, predicted, procrustes=procrustes)
    count = benchmark.count(real, predicted)
    return {
        "benchmark": benchmark.name,
        "protocol": describe(benchmark, procrustes, chosen),
        "options": {**({"procrustes": procrustes} if procrustes else {}), **chosen},
        "count": count.scored,
        "annotated": count.annotated,
        "predictions": {"file": str(predictions), "sha256": _sha256(predictions)},
        "remarks": benchmark.check(predicted),
        "scores": {name: value._asdict() for name, value in found.items()},
        "metrics": benchmark.metrics(found),
        "baseline": {},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stem(report: dict[str, Any]) -> str:
    """Name of a report's files; options that are not the default are told apart."""
    benchmark = protocols.load(report["benchmark"])
    default = settings(benchmark, {})
    if benchmark.alignments:
        default["procrustes"] = benchmark.alignments[0]
    other = [v for k, v in report["options"].items() if v != default[k]]
    return "_".join([report["benchmark"], *other])


def write(report: dict[str, Any], stem: Path) -> tuple[Path, Path]:
    """`<stem>.json`, and `<stem>_scores.txt` in the form of the official scripts."""
    lines = [
        f"{name}: {'nan' if score['value'] is None else format(score['value'], 'f')}\n"
        for name, score in report["scores"].items()
    ]
    text = stem.with_name(f"{stem.name}_scores.txt")
    files.write_bytes(text, "".join(lines).encode())
    path = stem.with_name(f"{stem.name}.json")
    files.write_json(path, report)
    return path, text


def table(report: dict[str, Any]) -> str:
    """Every score with its unit and its protocol."""
    number = f"{report['count']:,}"
    if report["annotated"] != report["count"]:
        number += f" of {report['annotated']:,}"
    head = f"{report['protocol']}: {number} samples"
    if "predictions" in report:
        head += f" of {report['predictions']['file']}"
    lines = [head]
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
