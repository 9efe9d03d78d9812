"""Print results of several runs as rows of the papers' tables.

    python -m handjax.tables runs/simplehand runs/hamba
    python -m handjax.tables --benchmark freihand METRO=metro_freihand.json runs/mine
    python -m handjax.tables --benchmark hint --format latex runs/a runs/b

A run is a report of `handjax.evaluate` (a JSON file), or a workdir, of which the newest
evaluated step is taken; NAME=RUN names its row. There is one table for each benchmark,
with the columns and units in which papers print it, the best of each in bold. The last
columns say how many samples were scored and by which protocol; rows that were not
measured alike are said on standard error.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from handjax.errors import MissingFileError
from handjax.evaluation import protocols
from handjax.evaluation.protocols import Column
from handjax.io import command_line, json_files
from handjax.io.command_line import Parser
from handjax.io.folders import visible

OWN_COLUMNS = (
    Column("PA-MPJPE", "pa_mpjpe_mm", digits=2),
    Column("PA-MPVPE", "pa_mpvpe_mm", digits=2),
    Column("MPJPE", "mpjpe_mm", digits=2),
    Column("MPVPE", "mpvpe_mm", digits=2),
    Column("F@5", "f5", digits=3),
    Column("F@15", "f15", digits=3),
)
"""Of evaluations on a run's own data: keys of `metrics.METRICS`."""


class Row(NamedTuple):
    """One run on one benchmark."""

    name: str
    values: dict[str, float | None]
    """By key of a column, in the script's unit."""
    count: int
    protocol: str


class Table(NamedTuple):
    """Rows of one benchmark under the same columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


# --- reading ------------------------------------------------------------------------


def reports(run: str, benchmark: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the reports of a run, with the names of their rows.

    Args:
        run: `[NAME=]PATH` of a report or of a workdir.
        benchmark: Only of this one; None for all.

    Raises:
        MissingFileError: There is nothing, or nothing of that benchmark.
        UserError: A file is not a report.
    """
    name, path = _split(run)
    if path.is_dir():
        files = _of_workdir(path)
    elif path.is_file():
        files = [path]
    else:
        raise MissingFileError(f"{str(path)!r} is neither a report nor a workdir.")
    found = [(name or _label(path), _read(file)) for file in files]
    chosen = [x for x in found if benchmark in (None, x[1]["benchmark"])]
    if not chosen:
        known = ", ".join(sorted(x[1]["benchmark"] for x in found)) or "nothing"
        raise MissingFileError(
            f"{str(path)!r} has no report of {benchmark!r}; it has {known}. Make it "
            "with `python -m handjax.evaluate`."
        )
    return chosen


def _split(run: str) -> tuple[str, Path]:
    """Split `[NAME=]PATH`; an existing path may have = in it, too."""
    name, equals, path = run.partition("=")
    if equals and not Path(run).exists():
        return name, Path(path)
    return "", Path(run)


def _label(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name


def _of_workdir(workdir: Path) -> list[Path]:
    """List the reports of the newest step that has some."""
    steps = [p for p in (workdir / "eval").glob("*") if p.name.isdecimal()]
    for step in sorted(steps, key=lambda p: -int(p.name)):
        files = visible(step, "*.json")
        if files:
            return files
    raise MissingFileError(
        f"{str(workdir)!r} has no evaluation; run `python -m handjax.evaluate "
        f"--workdir {workdir}`."
    )


def _read(path: Path) -> dict[str, Any]:
    kinds = {"benchmark": str, "protocol": str, "count": int, "metrics": dict}
    advice = "It is not a report of `python -m handjax.evaluate`."
    return json_files.read(path, kinds, advice)


# --- tables -------------------------------------------------------------------------


def make(found: Sequence[tuple[str, dict[str, Any]]]) -> list[Table]:
    """Build the tables of all benchmarks of some reports, as they come."""
    by_benchmark: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, report in found:
        by_benchmark.setdefault(report["benchmark"], []).append((name, report))
    return [
        table for name, group in by_benchmark.items() for table in _tables(name, group)
    ]


def _tables(benchmark: str, group: Sequence[tuple[str, dict[str, Any]]]) -> list[Table]:
    if benchmark not in protocols.names():
        rows = [row for name, report in group for row in _own_rows(name, report)]
        # The same baseline stands in the report of every run.
        once = [row for i, row in enumerate(rows) if row not in rows[:i]]
        return [Table(benchmark, OWN_COLUMNS, tuple(once))]
    columns = protocols.load(benchmark).columns
    rows = tuple(_row(name, report) for name, report in group)
    return [
        Table(
            f"{benchmark}, {part} joints" if part else benchmark,
            tuple(c for c in columns if c.group == part),
            rows,
        )
        for part in dict.fromkeys(c.group for c in columns)
    ]


def _row(name: str, report: dict[str, Any]) -> Row:
    values = {key: score["value"] for key, score in report["scores"].items()}
    options = ", ".join(f"{k}={v}" for k, v in report["options"].items())
    return Row(
        name + _tta(report),
        values,
        report["count"],
        ", ".join(filter(None, [report["benchmark"], options])),
    )


def _own_rows(name: str, report: dict[str, Any]) -> list[Row]:
    count, protocol = report["count"], report["protocol"]
    rows = [
        Row(kind.replace("_", " "), metrics, count, protocol)
        for kind, metrics in report.get("baseline", {}).items()
    ]
    rows.append(Row(name + _tta(report), report["metrics"], count, protocol))
    rows += [
        Row(f"{name}: {stage} (floor)", metrics, count, protocol)
        for stage, metrics in report.get("floor", {}).items()
    ]
    return rows


def _tta(report: dict[str, Any]) -> str:
    said = report.get("tta")
    return f" + TTA ({said['mode']})" if said else ""


def differences(table: Table) -> list[str]:
    """List the reasons why rows of a table cannot be compared."""
    found = []
    for what, values in (
        ("protocols", {row.protocol for row in table.rows}),
        ("numbers of samples", {f"{row.count:,}" for row in table.rows}),
    ):
        if len(values) > 1:
            found.append(
                f"{table.title}: different {what}: {'; '.join(sorted(values))}"
            )
    return found


# --- text ---------------------------------------------------------------------------


def cells(table: Table, bold: str) -> list[list[str]]:
    """Return the text of a table: the header, then one row per run.

    Args:
        table: What to print.
        bold: `str.format` pattern of the best value of a column.
    """
    lines = [[table.title, *(_header(c) for c in table.columns), "samples", "protocol"]]
    best = {c.key: _best(table, c) for c in table.columns}
    for row in table.rows:
        line = [row.name]
        for column in table.columns:
            text = _text(row, column)
            is_best = text != "-" and text == best[column.key] and len(table.rows) > 1
            line.append(bold.format(text) if is_best else text)
        lines.append([*line, f"{row.count:,}", row.protocol])
    return lines


def _header(column: Column) -> str:
    return f"{column.header} {'mm' if _is_error(column) else ''}".strip()


def _is_error(column: Column) -> bool:
    """Return whether a column holds errors (millimetres, small is good)."""
    return "MPJPE" in column.header or "MPVPE" in column.header or column.key == "mrrpe"


def _text(row: Row, column: Column) -> str:
    value = row.values.get(column.key)
    # Without 778 vertices the official scripts say -1.
    if value is None or value < 0:
        return "-"
    return f"{column.factor * value:.{column.digits}f}"


def _best(table: Table, column: Column) -> str:
    texts = [text for row in table.rows if (text := _text(row, column)) != "-"]
    choose = min if _is_error(column) else max
    return choose(texts, key=float, default="")


def markdown(table: Table) -> str:
    """Format a table as in docs/results.md."""
    head, *lines = [[_escaped(c) for c in line] for line in cells(table, "**{}**")]
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def latex(table: Table) -> str:
    """Format a tabular with booktabs' rules, each row's protocol in a comment."""
    head, *lines = cells(table, "\\textbf{{{}}}")
    spec = "l" + "c" * len(table.columns)

    def row(line: Sequence[str]) -> str:
        return f"{' & '.join(_tex(c) for c in line[:-2])} \\\\"

    body = [f"{row(line)}  % {line[-2]} samples, {line[-1]}" for line in lines]
    rows = ["\\toprule", row(head), "\\midrule", *body, "\\bottomrule"]
    text = "\n".join(rows)
    return f"\\begin{{tabular}}{{{spec}}}\n{text}\n\\end{{tabular}}"


def _tex(text: str) -> str:
    for sign in "&%#_":
        text = text.replace(sign, f"\\{sign}")
    return text


def comma_separated(table: Table) -> str:
    """Format a table as CSV, without marks."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(cells(table, "{}"))
    return buffer.getvalue().rstrip("\n")


FORMATS = {"markdown": markdown, "latex": latex, "csv": comma_separated}


# --- entry --------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("tables", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="[NAME=]RUN", help="report or workdir")
    add("--benchmark", help="only of this one, e.g. freihand or synthetic_test")
    add("--format", default="markdown", choices=tuple(FORMATS), help="of the tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    return command_line.run(lambda: _print(_parser().parse_args(argv)))


def _print(arguments: argparse.Namespace) -> None:
    found = [
        report for run in arguments.runs for report in reports(run, arguments.benchmark)
    ]
    tables = make(found)
    print("\n\n".join(FORMATS[arguments.format](table) for table in tables))
    for table in tables:
        for text in differences(table):
            print(f"not comparable: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
