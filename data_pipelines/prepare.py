"""Prepare a published data set for training and evaluation.

python -m data_pipelines.prepare --list
python -m data_pipelines.prepare freihand
python -m data_pipelines.prepare freihand --source DIR --out DIR --hand MANO_FOLDER

With a name alone: what the data set is, its licence, how to get it. The same command
continues an interrupted preparation.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser


def _parser() -> Parser:
    parser = Parser("data prepare", __doc__)
    add = parser.add_argument
    add("dataset", nargs="?", help="name of the data set; see --list")
    add("--list", action="store_true", help="print the names, one a line")
    add("--source", help="directory with what was downloaded, unpacked")
    add("--out", help="directory of the prepared data set")
    add(
        "--split",
        action="append",
        default=[],
        help="split to prepare, may be repeated; default: all of the usual ones",
    )
    add(
        "--hand",
        default="",
        help="folder with MANO_RIGHT.pkl and MANO_LEFT.pkl: some data sets write poses "
        "relative to MANO's mean pose, which are left out without it",
    )
    add("--workers", type=int, default=0, help="processes; 0: one per core")
    add(
        "--beam",
        default="",
        metavar="RUNNER",
        help="runner of Apache Beam to use instead, e.g. DirectRunner, FlinkRunner",
    )
    add(
        "--beam_option",
        action="append",
        default=[],
        help="option of Beam's pipeline, may be repeated, e.g. --beam_option="
        "--flink_master=HOST:8081",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare or describe a data set; return the exit code."""
    return command_line.run(lambda: _prepare(_parser().parse_args(argv)), goes_on=True)


def _prepare(arguments: argparse.Namespace) -> None:
    from data_pipelines import datasets

    if arguments.list:
        print("\n".join(datasets.names()))
        return
    if not arguments.dataset:
        raise UserError("name a data set: " + ", ".join(datasets.names()) + ".")
    builder = datasets.load(arguments.dataset).BUILDER
    if not (arguments.source or arguments.out):
        print(builder.describe(), end="")
        return
    _check(arguments)
    print(_run(arguments))


def _check(arguments: argparse.Namespace) -> None:
    if not (arguments.source and arguments.out):
        raise UserError("give both --source DIR and --out DIR.")
    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers} must be 0 or more.")
    if arguments.beam and arguments.workers:
        raise UserError("--workers and --beam exclude each other.")
    if arguments.beam_option and not arguments.beam:
        raise UserError("--beam_option needs --beam RUNNER.")


def _run(arguments: argparse.Namespace) -> str:
    from data_pipelines.preparation import job

    out = job.prepare(
        arguments.dataset,
        arguments.source,
        arguments.out,
        splits=arguments.split,
        hand=arguments.hand,
        workers=arguments.workers or os.cpu_count() or 1,
        beam=arguments.beam,
        beam_options=arguments.beam_option,
    )
    return _summary(arguments, out)


def _summary(arguments: argparse.Namespace, out: Path) -> str:
    from data_pipelines import datasets
    from data_pipelines.preparation import job
    from data_pipelines.sources import conventions
    from data_pipelines.storage import shards

    made_from = shards.read_metadata(out)["made_by"]["source"]
    lines = []
    for split, made in job.read_manifest(out)["splits"].items():
        dropped = "".join(
            f"; {count:,} dropped: {reason}"
            for reason, count in made["dropped"].items()
        )
        lines.append(
            f"{split}: {made['kept']:,} hands ({made['right']:,} right, "
            f"{made['left']:,} left), {made['bytes'] / 1e6:,.1f} MB{dropped}"
        )
        if made["kept"] < made["published"]:
            lines.append(
                f"  note: {made['published']:,} are published, so a part of the source "
                "may be missing."
            )
    missing = conventions.left_out(arguments.dataset)
    if missing and not arguments.hand and made_from == datasets.PUBLISHED:
        lines.append(
            f"note: MANO {missing} of this data set cannot be written down without the "
            "hand model, so they are left out; give its folder with --hand."
        )
    lines.append(f"{out}: complete. See {out / 'contact_sheet_*.png'}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
