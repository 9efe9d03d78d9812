"""handjax and the same network in PyTorch, timed in turn on the same device.

Both get random weights of their own and as many threads as each library takes; timed is
the network from normalised or raw pixels on the device to the vertices.
"""

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from handjax.benchmarking import clock
from handjax.errors import UserError
from handjax.training.step import create, make_step

Program = Callable[[], Any]
"""Runs once and waits for the result."""


class Timing(NamedTuple):
    """Median of one program."""

    program: str
    """Such as "predict/batch1/torch_eager"."""
    milliseconds: float
    ratio: float
    """handjax's median over this one's; below 1 handjax is faster."""
    rounds: int


def measure(
    subject: Any, family: str, batch_sizes: tuple[int, ...], seconds: float
) -> Iterator[Timing]:
    """Time inference at each batch size, then an update of the first above 1.

    Args:
        subject: `measurements.Subject`.
        family: Its name, which `torch_peers.PEERS` has to know.
        batch_sizes: Images at once.
        seconds: How long to repeat each comparison, three rounds at least.

    Raises:
        UserError: PyTorch or timm is not installed, or the family has no peer.
    """
    peer = _peer(subject, family)
    from handjax.benchmarking import torch_peers

    fused, compiled = _reparameterised(peer), _torch_compiled(peer)
    for size in batch_sizes:
        image = subject.example(size).image
        tensor = _torch_input(peer, subject, image)
        programs = {
            "handjax": _jax_forward(*subject.served, image),
            "torch_eager": _torch_forward(peer, tensor),
            "torch_eager_fused": _torch_forward(fused, tensor),
            "torch_compile": _torch_forward(compiled, tensor),
        }
        yield from _in_turn(f"predict/batch{size}", programs, seconds)
    if family in torch_peers.UPDATED:
        size = next((n for n in batch_sizes if n > 1), 2)
        with _torch_update(subject, family, size) as torch_update:
            programs = {
                "handjax": _jax_update(subject, size),
                "torch_eager": torch_update,
            }
            yield from _in_turn(f"update/batch{size}", programs, seconds)


def _in_turn(
    name: str, programs: dict[str, Program], seconds: float
) -> Iterator[Timing]:
    times = clock.in_turn(programs, seconds)
    rounds = len(times["handjax"])
    medians = {key: statistics.median(values) for key, values in times.items()}
    for key, value in medians.items():
        ratio = medians["handjax"] / value
        yield Timing(f"{name}/{key}", round(1e3 * value, 2), round(ratio, 3), rounds)


# --- handjax -------------------------------------------------------------------


def _jax_forward(model: Any, variables: Any, image: np.ndarray) -> Program:
    program, image = jax.jit(model.apply), jax.device_put(image)
    variables = jax.device_put(variables)
    return lambda: jax.block_until_ready(program(variables, image))


def _jax_update(subject: Any, size: int) -> Program:
    stage = subject.stages[-1]
    options = subject.config.stages[stage.name]
    step = jax.jit(make_step(subject.model, stage, options), donate_argnums=0)
    batch = jax.device_put(subject.example(size))
    # A copy, for the update gives its state away.
    variables = jax.tree.map(lambda x: x.copy(), jax.device_put(subject.variables))
    state = create(variables, stage, options, jax.random.key(0))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics["loss"])

    return run


# --- PyTorch -------------------------------------------------------------------


def _peer(subject: Any, family: str) -> Any:
    try:
        from handjax.benchmarking import torch_peers
    except ImportError as error:
        raise UserError(
            f"--what=peer needs PyTorch and timm ({error}): "
            "pip install 'handjax[parity]'."
        ) from error
    if family not in torch_peers.PEERS:
        raise UserError(
            f"--what=peer: {family!r} has no network in PyTorch to compare with; "
            f"there are {', '.join(torch_peers.PEERS)}."
        )
    import torch

    config = subject.config
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    network = torch_peers.PEERS[family](config.model.backbone, config.data.crop_size)
    return network.to(torch.device(device)).eval()


def _torch_input(peer: Any, subject: Any, image: np.ndarray) -> Any:
    from handjax.benchmarking import torch_peers

    config = subject.config.model
    tensor = torch_peers.normalised(image, config.image_mean, config.image_std)
    return tensor.to(next(peer.parameters()).device)


def _reparameterised(peer: Any) -> Any:
    """Return a copy with timm's inference form of the backbone, if it has one."""
    from timm.utils.model import reparameterize_model

    return reparameterize_model(peer).eval()


def _torch_compiled(peer: Any) -> Any:
    import torch

    return torch.compile(peer)


def _torch_forward(network: Any, tensor: Any) -> Program:
    import torch

    def run() -> None:
        with torch.inference_mode():
            points, _ = network(tensor)
            points.cpu()  # waits for a GPU

    return run


@contextlib.contextmanager
def _torch_update(subject: Any, family: str, size: int) -> Iterator[Program]:
    """Run updates in a process of their own (see `torch_update`)."""
    config = subject.config
    arguments = (family, config.model.backbone, config.data.crop_size, size)
    command = [
        sys.executable,
        "-m",
        "handjax.benchmarking.torch_update",
        *map(str, arguments),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        questions: Any = process.stdin
        answers: Any = process.stdout

        def run() -> None:
            questions.write("\n")
            if not answers.readline():
                raise UserError(f"{' '.join(command[1:])} ended; run it alone to see.")

        try:
            yield run
        finally:
            questions.close()
