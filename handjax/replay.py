r"""Make an update again that was inf or nan, and say where it breaks.

    python -m handjax.replay --update runs/tokenhand/nonfinite/mesh-1200

Training names the directory when it stops. Nothing is written. Losses and gradients are
printed, and what of the batch is not finite, or else the operation that first makes a
number that is not.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser

if TYPE_CHECKING:
    from handjax.family.stage import Stage
    from handjax.training.step import TrainState
    from handjax.types import Batch


def _parser() -> Parser:
    parser = Parser("replay", __doc__)
    add = parser.add_argument
    add(
        "--update",
        required=True,
        help="directory of the update: WORKDIR/nonfinite/STAGE-N",
    )
    add(
        "--where",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for the operation that breaks it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat the update; return 0 if it is finite here, 1 if it is not."""
    return command_line.run(lambda: _replay(_parser().parse_args(argv)))


def _replay(values: argparse.Namespace) -> int:
    import jax

    from handjax.io import console
    from handjax.training import nonfinite
    from handjax.training.step import GRAD_NORMS, first_nonfinite, make_step

    kept, batch = nonfinite.read(Path(values.update))
    config, model, stage, state = _restored(Path(values.update), kept)
    options = config.stages[stage.name]
    step = make_step(model, stage, options)
    console.say(
        f"stage {kept.stage}, update {kept.step}: {kept.what} when it was trained"
    )
    _, metrics = jax.jit(step)(state, batch)
    found = jax.device_get(metrics)
    norms = found.pop(GRAD_NORMS)
    for name in sorted(found):
        if name.startswith("loss"):
            console.say(f"  {name:<24} {float(found[name]):.6g}")
    console.say(f"  {'grad_norm':<24} {float(found['grad_norm']):.6g}")
    bad = first_nonfinite(found, norms, options)
    if not bad:
        console.say(
            "here it is finite: another device or version computes it otherwise"
        )
        return 0
    console.say(f"here, too: {bad}")
    brought = nonfinite.brought(batch)
    if brought:
        console.say(f"it came with the batch: {brought}")
    elif values.where:
        console.say(_first_operation(step, state, batch))
    return 1


def _restored(directory: Path, kept: Any) -> "tuple[Any, Any, Stage, TrainState]":
    """Restore config, model, stage and the state before the update."""
    import jax

    from handjax import models
    from handjax.checkpoints.store import Checkpoints, abstract
    from handjax.checkpoints.workdir import build_model, load_variables, read_config
    from handjax.family import hand_constants
    from handjax.training.resume import saved_parts
    from handjax.training.step import TrainState, create

    config = read_config(directory)
    family = models.load(config.family)
    (stage,) = (s for s in family.stages(config) if s.name == kept.stage)
    step = kept.step - 1
    variables, _ = load_variables(directory, stage.name, step)
    edges = hand_constants.skeleton_of(variables).bones
    model = build_model(family, config, dtype=kept.dtype, edges=edges)
    shapes = jax.eval_shape(
        lambda: create(variables, stage, config.stages[stage.name], jax.random.key(0))
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = abstract(shapes, jax.tree.map(lambda _: here, shapes))
    store = Checkpoints(directory, stage.name)
    found = store.restore(target.variables, saved_parts(target), print)
    store.close()
    if found is None:
        raise UserError(f"{directory} has no checkpoint of stage {stage.name!r}.")
    collections = {k: v for k, v in found.variables.items() if k != "params"}
    state = TrainState(
        params=found.variables["params"], collections=collections, **found.train
    )
    return config, model, stage, state


def _first_operation(step: Any, state: "TrainState", batch: "Batch") -> str:
    """Describe the operation whose result is the first inf or nan."""
    import jax

    with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
        try:
            step(state, batch)
        except FloatingPointError as error:
            return _located(error)
    return "no single operation made it when they were run one by one"


def _located(error: FloatingPointError) -> str:
    root = str(Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f for f in frames if f.filename.startswith(root) and "venv" not in f.filename
    ]
    said = str(error).splitlines()[0]
    if not ours:
        return said
    last = ours[-1]
    place = f"{Path(last.filename).relative_to(root)}:{last.lineno}"
    return f"first made in {place}, {last.name}: {last.line}\n  {said}"


if __name__ == "__main__":
    sys.exit(main())
