"""What a run begins with when `config.init_from` names a directory.

That is one of: a workdir of an earlier run, whose finished stages are taken over (of a
family with one stage, the whole model); a backbone of handjax.convert, which becomes
the model's `image_encoder`, or an encoder of texts, its `text_encoder`; a whole model
of handjax.convert, of which another family takes the backbone alone (Hamba begins from
HaMeR's).
"""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from handjax.checkpoints.workdir import load_variables, stage_steps
from handjax.conversion import directory
from handjax.errors import UserError
from handjax.training.run import Run
from handjax.training.step import flat, nested

_FIELDS = {"image_encoder": "backbone", "text_encoder": "text"}
"""Part of a model that converted weights may be -> field of the model that names it."""
_SHOWN = 5


def first_stage(run: Run) -> int:
    """Index of the first stage to train: later ones if an earlier run finished some.

    The last stage is always trained.

    Raises:
        UserError: if the directory has nothing that this run can begin from, or holds
            weights of another backbone or family.
    """
    source = run.config.init_from
    if not source:
        return 0
    if directory.is_conversion(source):
        _check_record(run, directory.read_record(source))
        return 0
    done = stage_steps(Path(source))
    stages = [s.name for s in run.family.stages(run.config)]
    names = stages[:-1]
    finished = [done.get(name) for name in names]
    count = finished.index(None) if None in finished else len(finished)
    if not count and not (len(stages) == 1 and done.get(stages[0])):
        raise UserError(
            f"config.init_from={source!r} has no checkpoint of stage {stages[0]!r}; it "
            f"has {sorted(done) or 'none'}. Pass the workdir of a run, or a directory "
            "that handjax.convert made."
        )
    return count


def refuse_converted(workdir: str | Path) -> None:
    """Refuse to train in a directory that `handjax.convert` made.

    Raises:
        UserError: says what to do instead; its checkpoint has no optimiser state.
    """
    if directory.is_conversion(workdir):
        raise UserError(
            f"--workdir={str(workdir)!r} holds converted weights. To train from them, "
            f"pass --config.init_from={workdir} and another --workdir."
        )


def take_over(run: Run, index: int, variables: Any) -> tuple[Any, dict[str, Any]]:
    """Take a part, or all, of the fresh variables from `config.init_from`.

    Args:
        run: shared by the stages.
        index: of the first stage to train, as `first_stage` says.
        variables: freshly made ones, placed on the devices.

    Returns:
        The variables, and the metadata of the checkpoint that they come from ({} for a
        backbone).

    Raises:
        UserError: if that part does not have the names and shapes of this model's.
    """
    source = Path(run.config.init_from)
    if not directory.is_conversion(source):
        return _from_run(run, index, variables)
    record = directory.read_record(source)
    if record["kind"] == "backbone":
        encoder = {
            f"{collection}/{_part(record)}/{path}": value
            for collection, tree in directory.read_backbone(source).items()
            for path, value in flat(tree).items()
        }
        return _backbone(run, variables, record, encoder), {}
    theirs, info, step = _checkpoint(source, record["stage"])
    if record["family"] == run.config.family:
        return _whole(run, variables, record, theirs, step), info
    encoder = {name: value for name, value in theirs.items() if _is_in(name, record)}
    return _backbone(run, variables, record, encoder), {}


def _check_record(run: Run, record: dict[str, Any]) -> None:
    """Refuse weights of another backbone, before anything is computed."""
    source, family = run.config.init_from, record["family"]
    field = _FIELDS[_part(record)]
    name = run.config.model.get(field, "")
    if name != record["backbone"]:
        with_what = f"{family} with {record['backbone']}" if family else ""
        raise UserError(
            f"config.init_from={source!r} is a {with_what or record['backbone']}, but "
            f"config.model.{field}={name!r}. Convert weights of that one, or pass "
            f"--config.model.{field}={record['backbone']}."
        )


def _backbone(
    run: Run, variables: Any, record: dict[str, Any], theirs: dict[str, Any]
) -> Any:
    source, family = run.config.init_from, record["family"]
    mine = _named(variables)
    wanted = {name for name in mine if _is_in(name, record)}
    merged = _merged(mine, wanted, theirs, f"{source} ({record['backbone']})")
    what = "the encoder" if _part(record) == "text_encoder" else "the backbone"
    whose = f" of a whole {family}, and nothing else," if family else ""
    run.say(
        f"took {what} {record['backbone']}{whose} ({len(theirs)} arrays of "
        f"{record['source']['file']}) from {source}; licence: {record['licence']}"
    )
    return merged


def _part(record: dict[str, Any]) -> str:
    """Return the submodule a conversion becomes; early conversions are backbones."""
    return record.get("part", "image_encoder")


def _is_in(name: str, record: dict[str, Any]) -> bool:
    return name.split("/", 1)[1].startswith(f"{_part(record)}/")


def _whole(
    run: Run,
    variables: Any,
    record: dict[str, Any],
    theirs: dict[str, Any],
    step: int,
) -> Any:
    source, family = run.config.init_from, record["family"]
    merged = _all(variables, theirs, source)
    run.say(
        f"took {family} with {record['backbone']} ({record['source']['file']}, step "
        f"{step}) from {source}; licence: {record['licence']}"
    )
    return merged


def _checkpoint(source: str | Path, stage: str) -> tuple[dict, dict[str, Any], int]:
    step = stage_steps(Path(source))[stage][-1]
    theirs, info = load_variables(source, stage, step)
    return _named(theirs), info, step


def _all(variables: Any, theirs: dict[str, Any], source: str) -> Any:
    """Take over every variable; the hand model's must be the same ones."""
    mine = _named(variables)
    merged = _merged(mine, set(mine), theirs, str(source))
    for name, value in mine.items():
        if name.startswith("constants/") and not np.allclose(
            jax.device_get(value), jax.device_get(theirs[name]), atol=1e-6
        ):
            raise UserError(
                f"config.init_from={str(source)!r} was made for another hand model "
                f"({name} differs); pass its config.hand.source and config.hand.tips."
            )
    return merged


def _from_run(run: Run, index: int, variables: Any) -> tuple[Any, dict[str, Any]]:
    """Take over a run's earlier stages, or all of a one-stage family's model."""
    source, stages = run.config.init_from, run.family.stages(run.config)
    earlier = stages[:index] or stages
    theirs, info, step = _checkpoint(source, earlier[-1].name)
    where = f"{source} (stage {earlier[-1].name!r}, step {step})"
    later = stages[index]
    if later.check is not None:  # says more than a list of shapes
        later.check(run.config, run.model, nested(theirs), info)
    if index == 0:
        merged = _all(variables, theirs, source)
    else:
        pattern = "|".join(f"(?:{s.trainable})" for s in earlier)
        mine = _named(variables)
        wanted, given = (
            {k for k in names if re.search(pattern, k.split("/", 1)[1])}
            for names in (mine, theirs)
        )
        merged = _merged(mine, wanted, {k: theirs[k] for k in given}, where)
    run.say(f"took stage {earlier[-1].name!r} at step {step} from {source}")
    return merged, info


def _merged(
    mine: dict[str, Any], wanted: set[str], theirs: dict[str, Any], where: str
) -> Any:
    """Return `mine` with the wanted entries taken from `theirs`.

    Raises:
        UserError: if names or shapes are not the same.
    """
    shapes = {
        k: (theirs[k].shape, mine[k].shape)
        for k in wanted & set(theirs)
        if theirs[k].shape != mine[k].shape
    }
    if wanted != set(theirs) or shapes:
        raise UserError(
            f"{where} does not fit this config: missing there "
            f"{sorted(wanted - set(theirs))[:_SHOWN]}, unknown here "
            f"{sorted(set(theirs) - wanted)[:_SHOWN]}, other shapes "
            f"{sorted(shapes.items())[:_SHOWN]}."
        )
    return nested(
        {
            k: jax.device_put(theirs[k], v.sharding) if k in wanted else v
            for k, v in mine.items()
        }
    )


def _named(variables: Any) -> dict[str, Any]:
    return flat(dict(variables))
