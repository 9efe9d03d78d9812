r"""Measure a model on this machine: compilation, speed, memory, work.

    python -m handjax.benchmark --config configs/tokenhand.py:small
    python -m handjax.benchmark --config configs/tokenhand.py --what latency,flops
    python -m handjax.benchmark --config configs/tokenhand.py:small --what ops
    python -m handjax.benchmark --config configs/tokenhand.py:small --what waiting
    python -m handjax.benchmark --config configs/simplehand.py --what peer
    python -m handjax.benchmark --config configs/hamba.py --what tokens
    python -m handjax.benchmark --config configs/mmhmr.py --what sampling
    python -m handjax.benchmark --config configs/mmhmr.py --what scaling --devices 64
    python -m handjax.benchmark --config configs/tore.py --what cost --batch_sizes 32

Weights are random and pictures black, which changes no timing. Standard output gets one
JSON object a line (name, metric, value, unit, method, device, versions), standard
error a table to read.
"""

import argparse
import sys
from collections.abc import Sequence

from handjax.config import flags
from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least, comma_separated

MEASURES = {
    "compile": "seconds to trace and to compile",
    "latency": "milliseconds for one image",
    "throughput": "images per second at the best batch size",
    "train_step": "milliseconds for one update of each stage",
    "memory": "bytes that inference and updates need",
    "flops": "floating-point operations for one image and one update",
    "ops": "each formulation of the operations that platforms differ in",
    "parts": "milliseconds for each part of a model, one image",
    "sampling": "milliseconds for one image in 1, 3, 5 and 10 steps of sampling",
    "tokens": "attention and scans on 192 and 22 tokens: size, work, time, memory",
    "waiting": "share of an update's time that is spent waiting for the loader's data",
    "scaling": "bytes that the devices of a pod send each other in an update, and the "
    "share of its time that is left for computing; alone, with --devices",
    "cost": "multiplications and images per second with and without token reduction",
    "peer": "the same network here and in PyTorch (eager, fused, compiled), in turn",
}
ON_REQUEST = (
    *("ops", "parts", "sampling", "scaling", "tokens", "waiting", "cost", "peer"),
)
DEFAULT = [name for name in MEASURES if name not in ON_REQUEST]


def _parser() -> Parser:
    parser = Parser("benchmark", __doc__)
    flags.add_config(parser)
    add = parser.add_argument_group("measurements").add_argument
    add(
        "--what",
        type=comma_separated,
        default=DEFAULT,
        metavar="A,B",
        help="some of "
        + "; ".join(f"{name}: {text}" for name, text in MEASURES.items())
        + f". Default: {','.join(DEFAULT)}",
    )
    add(
        "--seconds",
        type=at_least(0, float),
        default=5.0,
        help="how long to repeat each timing; default: 5",
    )
    add(
        "--max_batch",
        type=at_least(1),
        default=256,
        help="largest batch that throughput tries; default: 256",
    )
    add(
        "--devices",
        type=at_least(2),
        default=64,
        help="simulated devices, for scaling; default: 64",
    )
    add(
        "--batch_sizes",
        type=comma_separated,
        default=["1", "8"],
        metavar="N,N",
        help="images at once, for cost and peer; default: 1,8",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    return command_line.run(lambda: _measure(flags.parse(_parser(), argv)))


def _measure(values: argparse.Namespace) -> None:
    unknown = sorted(set(values.what) - set(MEASURES))
    if unknown or not values.what:
        raise UserError(
            f"--what={','.join(values.what)!r}: {', '.join(unknown) or 'nothing'} is "
            f"not one of {', '.join(MEASURES)}."
        )
    if not all(size.isdigit() and int(size) > 0 for size in values.batch_sizes):
        raise UserError(
            f"--batch_sizes={','.join(values.batch_sizes)!r} must be whole numbers "
            "above 0, such as 1,8,32."
        )
    config = flags.read(values)
    if "scaling" in values.what:
        _simulate(values.what, values.devices)
    from handjax.benchmarking import measurements  # imports jax and flax

    measurements.run(
        config,
        tuple(name for name in MEASURES if name in values.what),
        seconds=values.seconds,
        max_batch=values.max_batch,
        batch_sizes=tuple(int(size) for size in values.batch_sizes),
    )


def _simulate(what: Sequence[str], devices: int) -> None:
    """Let this process have so many CPU devices."""
    if len(what) > 1:
        raise UserError("--what=scaling simulates devices; measure it alone.")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


if __name__ == "__main__":
    sys.exit(main())
