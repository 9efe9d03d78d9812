"""Give damaged files to every reader and count how it ends.

    python tests/fuzz/run.py --inputs 3000

Each input ends well if the reader returns, or raises an error that a user gets as one
line, within 10 s and 1 GB, and touches nothing outside of the folder of the input: no
file is written, no program started, no connection made. Inputs that end otherwise are
kept in `--keep`. The same numbers make the same inputs.
"""

import argparse
import collections
import contextlib
import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import mutations  # noqa: E402
import readers  # noqa: E402

from handjax.errors import HandjaxError  # noqa: E402

SECONDS = 10
BYTES = 1 << 30
FAULTS = 3
"""Exit code of a reader's process that has counted its faults."""
LONGEST = 2000
"""Characters of a message that is still one line to a reader."""

_WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


class Misbehaved(BaseException):
    """A reader touched what it must not; no `except Exception` hides it."""


class Outcome(NamedTuple):
    """How one input ended."""

    kind: str
    """"read", "refused" or "fault"."""
    seconds: float
    text: str = ""


class Guard:
    """Watches the process while a reader runs."""

    def __init__(self):
        self._folder, self.found = "", ""
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Note what is touched outside of a folder."""
        self._folder, self.found = str(folder), ""
        try:
            yield
        finally:
            self._folder = ""

    def _hook(self, event: str, args: tuple) -> None:
        if not self._folder:
            return
        if event in _STARTING or event.startswith("socket.connect"):
            self.found = f"{event} {args!r:.200}"
            raise Misbehaved(self.found)
        writes = event in _WRITING or (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and isinstance(args[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(args[0]))
            if (
                not path.startswith((self._folder, "/dev/null"))
                and "pycache" not in path
            ):
                self.found = f"{event} {path}"
                raise Misbehaved(self.found)


def _late(*_: object) -> None:
    raise Misbehaved(f"it takes longer than {SECONDS} s")


def read(
    reader: readers.Reader,
    folder: Path,
    path: Path,
    guard: Guard,
    limits: bool = True,
) -> Outcome:
    """Give one input to a reader; `limits` ends it after `SECONDS`."""
    start = time.perf_counter()
    if limits:
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(SECONDS)
        # A library that never returns does not see the alarm.
        faulthandler.dump_traceback_later(SECONDS + 5, exit=True)
    kind, text = "read", ""
    try:
        with guard.watching(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder if reader.whole else path)
    except HandjaxError as error:
        kind, text = "refused", str(error)
        if len(text) > LONGEST:
            kind, text = "fault", f"a message of {len(text)} characters: {text[:200]}"
    except OSError as error:
        # `command_line.run` makes one line of these, if the system says why.
        kind = "refused" if error.errno is not None else "fault"
        text = traceback.format_exc()
    except (Exception, Misbehaved):
        kind, text = "fault", traceback.format_exc()
    finally:
        if limits:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
    if guard.found:
        kind, text = "fault", guard.found
    return Outcome(kind, time.perf_counter() - start, text)


def fuzz(
    name: str,
    inputs: int,
    seed: int,
    keep: Path | None,
    guard: Guard,
    limits: bool = True,
) -> tuple[collections.Counter, float, list[str]]:
    """Damage the files of one reader; return counts, longest time and faults."""
    reader = readers.READERS[name]
    counts: collections.Counter[str] = collections.Counter()
    longest, faults = 0.0, []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve() / "input"
        folder.mkdir()
        reader.make(folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        for path in files if not reader.whole else files[:1]:
            outcome = read(reader, folder, path, guard, limits)
            if outcome.kind != "read" and name != "released weights":
                raise SystemExit(f"{name}: {path.name} as it is: {outcome.text}")
        for number in range(inputs):
            source = random.Random(f"{name} {seed} {number}")
            path = source.choice(files)
            good = path.read_bytes()
            data = mutations.mutated(good, source)
            path.write_bytes(data)
            if keep is not None:
                # Should the process end, its last input is here.
                keep.mkdir(parents=True, exist_ok=True)
                last = keep / f"{name}-last{path.suffix}".replace(" ", "_")
                last.write_bytes(data)
            outcome = read(reader, folder, path, guard, limits)
            path.write_bytes(good)
            counts[outcome.kind] += 1
            longest = max(longest, outcome.seconds)
            if outcome.kind == "fault":
                faults.append(f"{name} {path.name} {number}: {outcome.text}")
                if keep is not None:
                    last.rename(keep / last.name.replace("last", str(number)))
    return counts, longest, faults


def limit_memory() -> None:
    """Let this process take 1 GB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> int:
    """Fuzz the readers, each in a process of its own; print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=300, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=list(readers.READERS))
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    print("| reader | read | refused in one line | faults | longest, s |")
    print("|---|---|---|---|---|")
    wrong = 0
    for name in arguments.reader or readers.READERS:
        sys.stdout.flush()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                wrong += 1
                if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) != FAULTS:
                    print(f"| {name} | ended with status {status} | | | |")
            continue
        limit_memory()
        counts, longest, faults = fuzz(
            name, arguments.inputs, arguments.seed, arguments.keep, Guard()
        )
        numbers = [counts[kind] for kind in ("read", "refused", "fault")]
        print(f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {longest:.2f} |")
        sys.stdout.flush()
        for fault in faults[:3]:
            print(fault, file=sys.stderr)
        os._exit(FAULTS if faults else 0)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
