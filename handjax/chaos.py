r"""Interrupt training at random and compare with an unbroken run.

    python -m handjax.chaos --workdir /tmp/chaos --kills 50 --terms 10 \
        --train "--config configs/tokenhand.py:smoke --config.train.checkpoint_every=5"

`WORKDIR/unbroken` is trained in one go, `WORKDIR/broken-1`, `-2`, ... are killed
(SIGKILL) and asked to stop (SIGTERM) at random moments: while a process starts, between
two updates, while a checkpoint is written, when a stage begins. After each, the same
command goes on. Every run that gets to its end must have the parameters of the unbroken
one, bit for bit, and its log lines. On one CPU device that holds; on several devices or
GPUs, sums may be made in another order.
"""

import argparse
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from handjax.errors import HandjaxError, UserError
from handjax.io import command_line, console, json_files
from handjax.io.command_line import Parser, at_least
from handjax.io.folders import visible

MOMENTS = ("start", "update", "checkpoint", "stage")
MACHINE = ("images_per_s", "share_")
"""Beginnings of metrics that are of the machine, not of the run."""


class Failure(HandjaxError):
    """A run did not survive; the message says how."""


class Chaos:
    """Runs of one command that are interrupted."""

    def __init__(self, command: Sequence[str], root: Path, seed: int, grace_s: float):
        self.command, self.root, self.grace_s = list(command), root, grace_s
        self.random = random.Random(seed)
        self.hits: Counter[str] = Counter()
        """Interruptions by signal and moment, `SIGKILL checkpoint`."""
        self.rounds = 0
        """Runs that got to their end, all equal to the unbroken one."""

    def run(self, kills: int, terms: int) -> None:
        """Interrupt the given number of runs, then let the last run finish.

        Raises:
            Failure: A start failed, SIGTERM did not save in time, or a result differs.
        """
        self._to_the_end(self.root / "unbroken")
        signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
        self.random.shuffle(signals)
        while signals:
            workdir = self.root / f"broken-{self.rounds + 1}"
            while signals and self._interrupted(workdir, signals[-1]):
                signals.pop()
            self._to_the_end(workdir)
            self._compare(workdir)
            self.rounds += 1
            console.say(f"{workdir.name}: as unbroken; {len(signals)} signals left")

    def _start(self, workdir: Path) -> tuple[subprocess.Popen, "_Output"]:
        process = subprocess.Popen(
            [*self.command, f"--workdir={workdir}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return process, _Output(process)

    def _to_the_end(self, workdir: Path) -> None:
        if (workdir / "DONE").exists():
            return
        process, output = self._start(workdir)
        if process.wait() != 0:
            raise Failure(f"{workdir} ended with {process.returncode}:\n{output.end()}")

    def _interrupted(self, workdir: Path, number: signal.Signals) -> bool:
        """Start, and send a signal at a random moment; False if the run ended first."""
        moment = self.random.choice(MOMENTS)
        process, output = self._start(workdir)
        self._await(moment, workdir, process, output)
        if process.poll() is not None:
            if process.returncode:
                raise Failure(
                    f"{workdir} ended with {process.returncode}:\n{output.end()}"
                )
            return False
        begun = output.count(" on ") > 0  # its first line
        process.send_signal(number)
        try:
            process.wait(self.grace_s if number == signal.SIGTERM else None)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Failure(
                f"{workdir} did not end within {self.grace_s:g} s of SIGTERM:\n"
                f"{output.end()}"
            ) from error
        # Before Python listens, SIGTERM ends a process as any other.
        allowed = {-number} if number == signal.SIGKILL else {0} if begun else {0, -15}
        if process.returncode == 0 and (workdir / "DONE").exists():
            return False
        if process.returncode not in allowed:
            raise Failure(f"{workdir} ended with {process.returncode}:\n{output.end()}")
        self.hits[f"{signal.Signals(number).name} {moment}"] += 1
        return True

    def _await(
        self,
        moment: str,
        workdir: Path,
        process: subprocess.Popen,
        output: "_Output",
    ) -> None:
        """Return at the moment, or when the process has ended."""
        updates = self.random.randint(1, 4)
        before = set(_writing(workdir))
        while process.poll() is None:
            if moment == "start" and self.random.random() < 0.02:
                return
            if moment == "update" and output.count("  loss ") >= updates:
                break
            if moment == "checkpoint" and set(_writing(workdir)) - before:
                break
            if moment == "stage" and output.count("compiling train step") >= 2:
                break
            time.sleep(0.002 if moment == "checkpoint" else 0.05)
        time.sleep(self.random.uniform(0, 0.05 if moment == "checkpoint" else 0.3))

    def _compare(self, workdir: Path) -> None:
        import jax
        import numpy as np

        from handjax.checkpoints.workdir import load_variables, stage_steps

        steps = stage_steps(self.root / "unbroken")
        if stage_steps(workdir).keys() != steps.keys():
            raise Failure(f"{workdir} has other stages than the unbroken run.")
        for stage, found in steps.items():
            pair = [
                load_variables(where, stage, found[-1])[0]
                for where in (self.root / "unbroken", workdir)
            ]
            same = jax.tree.map(
                lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), *pair
            )
            wrong = [
                jax.tree_util.keystr(path)
                for path, equal in jax.tree.leaves_with_path(same)
                if not equal
            ]
            if wrong:
                raise Failure(
                    f"{workdir}, stage {stage}: {len(wrong)} arrays differ from the "
                    f"unbroken run's, the first is {wrong[0]}."
                )
        if list(_lines(workdir)) != list(_lines(self.root / "unbroken")):
            raise Failure(f"{workdir}/metrics.jsonl has other lines than unbroken's.")


class _Output:
    """What a process says, read by a thread so that it never has to wait."""

    def __init__(self, process: subprocess.Popen):
        self._lines: list[str] = []
        self._thread = threading.Thread(
            target=self._read, args=(process.stdout,), daemon=True
        )
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._lines.append(line)

    def count(self, words: str) -> int:
        return sum(words in line for line in list(self._lines))

    def end(self) -> str:
        """Return the last lines of the output."""
        self._thread.join(timeout=5)
        return "".join(self._lines[-30:])


def _writing(workdir: Path) -> Iterator[Path]:
    """Yield the checkpoints that are being written."""
    yield from (workdir / "checkpoints").glob("*/*orbax-checkpoint-tmp*")


def _lines(workdir: Path) -> Iterator[dict]:
    """Log lines without what is of the machine."""
    for line in json_files.lines(workdir / "metrics.jsonl"):
        yield {k: v for k, v in line.items() if not k.startswith(MACHINE)}


def _parser() -> Parser:
    parser = Parser("chaos", __doc__)
    add = parser.add_argument
    add("--train", required=True, metavar="ARGUMENTS", help="those of handjax train")
    add("--workdir", required=True, help="new or empty directory")
    add("--kills", type=at_least(0), default=50, help="SIGKILLs; default: 50")
    add("--terms", type=at_least(0), default=10, help="SIGTERMs; default: 10")
    add("--seed", type=at_least(0), default=0, help="of the moments; default: 0")
    add(
        "--grace",
        type=at_least(0, float),
        default=30.0,
        help="seconds in which SIGTERM has to save and end; default: 30",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Interrupt training as asked; return 0 if every run survived."""
    return command_line.run(lambda: _interrupt(_parser().parse_args(argv)))


def _interrupt(values: argparse.Namespace) -> None:
    root = Path(values.workdir)
    if root.exists() and visible(root):
        raise UserError(f"--workdir={str(root)!r} is not empty; name a new directory.")
    command = [sys.executable, "-m", "handjax.train", *shlex.split(values.train)]
    chaos = Chaos(command, root, values.seed, values.grace)
    chaos.run(values.kills, values.terms)
    for hit, count in sorted(chaos.hits.items()):
        console.say(f"{hit:<24} {count}")
    console.say(
        f"{chaos.rounds} interrupted runs ended as the unbroken one, bit for bit"
    )


if __name__ == "__main__":
    sys.exit(main())
