"""Let the processes of a run find each other, agree, and notice that one has died.

Where `jax.distributed` recognises the cluster (Cloud TPU, Slurm, Kubernetes, MPI), a
process needs no arguments; elsewhere it gets the address of process 0, the number of
processes, and its own number.
"""

import itertools
import json
import os
import socket
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from handjax.errors import UserError
from handjax.io import console

MAX_CLOCK_S = 60.0
"""Seconds between clocks from which logs of several hosts are hard to compare."""

_FACTS_BYTES = 4096
_MAX_WAIT_S = 24 * 3600
"""Long, since a process that has died is noticed by its missing heartbeats."""
_BARRIERS = itertools.count()
"""Numbers for the names of barriers, which must be unique."""


class Cluster(NamedTuple):
    """How to reach the other processes; by default `jax.distributed` finds out."""

    coordinator: str = ""
    """Address and port of process 0, `host:1234`."""
    num_processes: int | None = None
    process_id: int | None = None
    timeout_s: int = 300
    """How long to wait for the others at start."""
    heartbeat_s: int = 100
    """A process that is silent for this long counts as dead."""


def join(cluster: Cluster) -> None:
    """Wait for the other processes.

    Raises:
        UserError: A value is missing, or the others do not come.
    """
    told = cluster.num_processes, cluster.process_id
    if cluster.coordinator and None in told:
        raise UserError(
            f"--coordinator={cluster.coordinator} needs --num_processes and "
            "--process_id as well: how many there are, and which one this is (0, 1, "
            "...). All processes get the same --coordinator, the address of process 0."
        )
    if not cluster.coordinator and told != (None, None):
        raise UserError(
            "--num_processes and --process_id need --coordinator=HOST:PORT, the "
            "address of process 0."
        )
    try:
        jax.distributed.initialize(
            cluster.coordinator or None,
            cluster.num_processes,
            cluster.process_id,
            initialization_timeout=cluster.timeout_s,
            heartbeat_timeout_seconds=cluster.heartbeat_s,
        )
    except (RuntimeError, ValueError) as error:
        where = f" at {cluster.coordinator}" if cluster.coordinator else ""
        raise UserError(
            f"The processes of this run did not find each other{where} within "
            f"{cluster.timeout_s} s: {console.first_line(error)}. Start all "
            "of them with the same command; where no cluster is recognised, name "
            "--coordinator, --num_processes and --process_id."
        ) from error


# --- Agreement ---------------------------------------------------------------


def compare(facts: dict[str, Any], say: Any) -> None:
    """Check that all processes run the same thing; every process calls it.

    Args:
        facts: What has to be the same everywhere, such as versions and config.
        say: Receives a line about clocks that differ.

    Raises:
        UserError: Names the process, the fact, and both values.
    """
    if jax.process_count() == 1:
        return
    mine = {"host": socket.gethostname(), "time": time.time(), **facts}
    everyone = _gather(mine)
    first, times = everyone[0], [one["time"] for one in everyone]
    for number, other in enumerate(everyone):
        for name in facts:
            if other.get(name) != first.get(name):
                raise UserError(
                    f"Process {number} on {other['host']} has {name} "
                    f"{other.get(name)}, process 0 on {first['host']} has "
                    f"{first.get(name)}. All processes have to run the same code with "
                    "the same config and data."
                )
    apart = max(times) - min(times)
    if apart > MAX_CLOCK_S:
        late = everyone[int(np.argmin(times))]["host"]
        say(
            f"the clocks of the hosts are {apart:.0f} s apart ({late} is last); "
            "training does not mind, but times in the logs will not agree"
        )


def _gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the dict of every process, in order."""
    from jax.experimental import multihost_utils

    text = json.dumps(mine, sort_keys=True).encode()
    if len(text) > _FACTS_BYTES:
        raise UserError(f"{len(text)} bytes are more than {_FACTS_BYTES}.")
    padded = np.zeros(_FACTS_BYTES, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row.tobytes().rstrip(b"\0")) for row in rows]


def all_agree(yes: bool, after: Any = None) -> bool:
    """Return whether every process says yes; every process calls it.

    Args:
        yes: What this process says.
        after: Outputs of a program that may still run. Accelerators run programs one
            after another. CPUs do not: what processes send each other for two programs
            at once can take all threads of a process, and each waits for the other.
    """
    if jax.process_count() == 1:
        return yes
    from jax.experimental import multihost_utils

    if jax.default_backend() == "cpu":
        jax.block_until_ready(after)
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def wait_for_all(what: str) -> None:
    """Block until every process is here.

    They may be an hour apart (one renders, the others wait), longer than connections
    between devices allow; so this uses the coordination service.

    Args:
        what: What has been done; the same on all of them.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"{what} {next(_BARRIERS)}", timeout_ms=1000 * _MAX_WAIT_S)


# --- Deaths ------------------------------------------------------------------


def leave_if_alone(error: BaseException, last_step: str) -> None:
    """End this process with a message if the error means that another one has died.

    A normal exit waits for all other processes, and so for ever for the dead one.

    Args:
        error: What went wrong.
        last_step: Sentence about the last checkpoint.
    """
    while not isinstance(error, jax.errors.JaxRuntimeError):
        if error.__cause__ is None:
            return
        error = error.__cause__
    if jax.process_count() == 1:
        return
    console.say(
        f"error: process {jax.process_index()} of {jax.process_count()} lost another "
        f"one, which has died or cannot be reached. {last_step} Start all processes "
        "again with the same command to go on from there. "
        f"({console.first_line(error)})",
        file=sys.stderr,
    )
    sys.stdout.flush()
    os._exit(1)
