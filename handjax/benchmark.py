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

import sys
from collections.abc import Sequence

from absl import flags

from handjax.config.flags import run
from handjax.errors import UserError

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

VALUES = flags.FlagValues()
flags.DEFINE_string(
    "config",
    None,
    "config file, with :variant; --config.KEY=VALUE changes a key of it",
    flag_values=VALUES,
)
flags.DEFINE_list("what", DEFAULT, f"some of {', '.join(MEASURES)}", flag_values=VALUES)
flags.DEFINE_float(
    "seconds", 5.0, "how long to repeat each timing", lower_bound=0, flag_values=VALUES
)
flags.DEFINE_integer(
    "max_batch",
    256,
    "largest batch that throughput tries",
    lower_bound=1,
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "devices",
    64,
    "simulated devices, for scaling",
    lower_bound=2,
    flag_values=VALUES,
)
flags.DEFINE_list(
    "batch_sizes", ["1", "8"], "images at once, for cost and peer", flag_values=VALUES
)


def main(values: flags.FlagValues) -> int:
    """Measure what the parsed flags say; returns the exit code."""
    from handjax.config import schema as configs

    unknown = sorted(set(values.what) - set(MEASURES))
    if unknown or not values.what:
        raise UserError(
            f"--what={','.join(values.what)!r}: {', '.join(unknown) or 'nothing'} is "
            f"not one of {', '.join(MEASURES)}."
        )
    try:
        configs.check(values.config)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not all(size.isdigit() and int(size) > 0 for size in values.batch_sizes):
        raise UserError(
            f"--batch_sizes={','.join(values.batch_sizes)!r} must be whole numbers "
            "above 0, such as 1,8,32."
        )
    if "scaling" in values.what:
        _simulate(values.what, values.devices)
    from handjax.benchmarking import measurements  # imports jax and flax

    try:
        measurements.run(
            values.config,
            tuple(name for name in MEASURES if name in values.what),
            seconds=values.seconds,
            max_batch=values.max_batch,
            batch_sizes=tuple(int(size) for size in values.batch_sizes),
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    return 0


def _simulate(what: Sequence[str], devices: int) -> None:
    """Let this process have so many CPU devices."""
    if len(what) > 1:
        raise UserError("--what=scaling simulates devices; measure it alone.")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry: flags from the command line."""
    return run(main, VALUES, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(cli())
