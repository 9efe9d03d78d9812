"""Read a workdir: its config, its checkpoints, its model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handjax.checkpoints.store import item_handlers
from handjax.config import schema as configs
from handjax.errors import MissingFileError, UserError, suggest
from handjax.io.folders import visible


def stage_steps(workdir: Path) -> dict[str, list[int]]:
    """Return steps of the complete checkpoints of each stage, without opening them."""
    root = Path(workdir) / "checkpoints"
    return {
        stage.name: sorted(int(p.name) for p in stage.iterdir() if p.name.isdigit())
        for stage in visible(root)
        if stage.is_dir() and stage.name != "unreadable"
    }


def read_config(workdir: Path | str) -> ConfigDict:
    """Read the config that a workdir was trained with.

    Raises:
        MissingFileError: The directory is not a workdir.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"{str(workdir)!r} is not a workdir: it has no config.json. Pass the "
            "--workdir of a `python -m handjax.train` run."
        )
    return configs.read_json(path)


def load_variables(
    workdir: Path | str, stage: str, step: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load one checkpoint's variables onto the first device, and its metadata.

    Shapes come from the checkpoint itself, so that a laptop can read one of a pod.
    """
    directory = (Path(workdir) / "checkpoints" / stage).absolute()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.CheckpointManager(
        directory,
        item_handlers=item_handlers(),
        options=ocp.CheckpointManagerOptions(read_only=True),
    ) as manager:
        shapes = manager.item_metadata(step)["variables"]
        target = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), shapes
        )
        found = manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(target),
                meta=ocp.args.JsonRestore(),
            ),
        )
    return found["variables"], found["meta"]


def load_for_inference(
    workdir: Path | str,
    stage: str | None = None,
    step: int | None = None,
    change: Callable[[ConfigDict], ConfigDict] | None = None,
) -> tuple[ConfigDict, Any, dict[str, Any], str, int]:
    """Load all that evaluation and prediction need from a workdir.

    Args:
        workdir: Directory of a `handjax.train` run.
        stage: None for the last stage that has a checkpoint.
        step: None for the newest one.
        change: Function that changes the run's config before the model is built.

    Returns:
        (config, model, variables, stage name, step).

    Raises:
        MissingFileError: There is no such checkpoint; lists those that exist.
    """
    from handjax import models
    from handjax.family import hand_constants

    config = read_config(workdir)
    if change is not None:
        config = change(config.lock())
    family = models.load(config.family)
    available = stage_steps(Path(workdir))
    order = [s.name for s in family.stages(config) if available.get(s.name)]
    if stage is None and order:
        stage = order[-1]
    if not stage or stage not in order or (step and step not in available[stage]):
        raise MissingFileError(
            f"{str(workdir)!r} has no checkpoint of stage {stage or 'any'!r}"
            f"{f' at step {step}' if step else ''}; it has "
            f"{ {k: v for k, v in available.items() if v} or 'none yet' }."
        )
    step = step or available[stage][-1]
    variables, _ = load_variables(workdir, stage, step)
    model = build_model(
        family, config, edges=hand_constants.skeleton_of(variables).bones
    )
    return config, model, variables, stage, step


def build_model(family: Any, config: ConfigDict, **fields: Any) -> Any:
    """Build `family.Model` with the fields of `config.model`.

    Args:
        family: Module of a family.
        config: Config of a run.
        **fields: Fields that are not in the config, if the model has them: `dtype` of
            the computation, `edges` between joints.

    Raises:
        UserError: `config.model` has a key that is not a field of the model, or
            lacks a field that has no default: what a recipe fixes is in the config
            alone.
    """
    declared = family.Model.__dataclass_fields__
    known = set(declared) - {"parent", "name"}
    unknown = sorted(set(config.model) - known)
    if unknown:
        raise UserError(
            f"config.model has no key {unknown[0]!r}{suggest(unknown[0], known)}"
        )
    plain = config.model.to_dict()
    given = {**{k: v for k, v in fields.items() if k in known}, **plain}
    missing = [
        name
        for name in declared
        if name in known
        and name not in given
        and declared[name].default is dataclasses.MISSING
    ]
    if missing:
        raise UserError(
            f"config.model lacks {', '.join(missing)}, which {config.family} needs; "
            f"configs/{config.family}.py has a value for every field. (Keys that older "
            "workdirs lack stand in handjax.config.schema.LATER_MODEL_KEYS.)"
        )
    return family.Model(**given)
