"""What every config starts from, and what values are allowed.

A config is an `ml_collections.ConfigDict` of plain values (numbers, strings, tuples and
dicts of them), so that it can be saved as JSON, compared with the one of an older run
and changed from the command line (`--config.train.log_every=10`).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.loading import recipes
from data_pipelines.storage import dataset_names
from handjax.errors import UserError, shown, suggest
from handjax.family.stage import FEATURES, LABELLED_POSES
from handjax.io import json_files

PRECISIONS = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "step", "constant")
DECAY_MASKS = ("no_1d", "paper", "all")
BATCH_NORMS = ("global", "device")
STAGE_DATA = ("images", "poses", LABELLED_POSES, FEATURES)
REGIONS = ("found", "true")
LETTERS = "asl_letters"
"""What the labelled poses are called where a data set is named."""

NEUTRAL_KEYS = (
    "data.threads",
    "eval.batch_size",
    "eval.num",
    "train.checkpoint_every",
    "train.compile_cache",
    "train.eval_every",
    "train.image_every",
    "train.keep",
    "train.keep_every",
    "train.log_every",
    "train.max_skipped",
    "train.num_images",
)
"""Keys that may change between two runs of one workdir: they do not enter the numbers
that training computes."""

LATER_MODEL_KEYS: dict[str, dict[str, Any]] = {
    "hamba": dict(tap="final", keep_ratio=1.0, heads=8),
    "mmhmr": dict(
        condition="image",
        text="labels",
        labels=tuple("abcdefhiklouwxy"),
        keep_ratio=1.0,
    ),
    "simplehand": dict(features="", feature_dropout=0.0),
    "tokenhand": dict(sampler_gradient=True, features="", feature_dropout=0.0),
    "tore": dict(output_unit="metres", token_init="normal"),
}
"""Keys of `config.model` that families got after their first workdirs were written,
each with the value that says what was done before: `from_json` completes old configs
with them. A field that is added to a `Model` is added here, too."""

STOPPING_KEYS = ("eval.num", "train.eval_every")
"""Those of them that decide where a stage with patience ends."""


def base() -> ml_collections.ConfigDict:
    """Return defaults, where a family fills in `family`, `model` and `stages`."""
    return ml_collections.ConfigDict(
        dict(
            family="",
            seed=0,
            # Directory of an earlier run or of handjax.convert to begin from; "": none.
            init_from="",
            model=dict(),  # fields of the family's Model
            # source: "open" (built in) or the path of a MANO file; tips: a name of
            # skeleton.MANO_TIPS, "" for the ones the file names. A file of a body in
            # SMPL's format brings its own counts and joints; data.root is then the
            # name of its first joint, "pelvis".
            hand=dict(source="open", side="right", tips=""),
            stages=dict(),  # name -> stage(...)
            data=_data(),
            train=_train(),
            mesh=dict(
                data=-1, fsdp=1
            ),  # devices along each axis; -1: all that are left
            eval=dict(batch_size=32, num=0),  # num: test examples used, 0 for all
        )
    )


def _data() -> dict[str, Any]:
    return dict(
        name="synthetic",  # "synthetic" is rendered on first use; others are prepared
        dir="",  # "": $HANDJAX_DATA or ~/.cache/handjax, then a name made of the sizes
        num_train=20_000,
        num_test=1_000,
        seed=0,
        image_size=224,  # side of the stored picture, pixels
        max_turn=180.0,  # of rendered hands from fingers up, palm to camera; degrees
        recipe="default",  # of rendered training pictures (synthetic.recipes)
        # Of stages with data="features": regions of each training picture that frozen
        # features are computed for, the first as the detector finds it; and regions of
        # test pictures, "found" by the detector or "true" ones, of the true joints.
        feature_views=2,
        regions="found",
        crop_size=224,  # side of what the network sees, pixels
        root="middle_mcp",
        box_scale=1.25,  # of the box around the joints, in evaluation
        # Of stages with data="poses", and a discriminator's: an npz
        # (data_pipelines.loading.pose_files); "": drawn from the built-in prior.
        poses="",
        label_turn=30.0,  # as max_turn, of labelled poses (synthetic.letters)
        vocabulary="",  # CLIP's file for encoders of any text (byte_pairs)
        # To train on instead: prepared data sets, each in a folder of its name in dir,
        # and their shares of the examples, relative to each other (0: left out).
        # Recipes are in data_pipelines.loading.recipes. Evaluation is on name, there
        # if its own dir is "".
        mixture=dict(dir="", shares=dict.fromkeys(dataset_names.PREPARED, 0.0)),
        # Further datasets to train on: directory -> weight, beside those shares or the
        # 1 that this one weighs.
        mix=dict(),
        # What of training records counts; see data_pipelines.loading.filters. 0: all.
        filters=recipes.Filters()._asdict(),
        threads=2,
        max_corrupt=10,  # unreadable records that are skipped before training stops
        augment=dict(  # see data_pipelines.loading.augment
            recipe="simplehand",  # with the amounts below; "hamer": with its own
            center_jitter=0.1,
            scale=(1.0, 1.5),
            max_rotation=math.pi,
            flip=0.0,
            channel_noise=0.4,
            brightness=(-0.4, 0.1),
            contrast=0.2,
            hamer=dict(
                shift=0.02,
                scale=0.3,
                rotation=math.pi / 6,
                rotation_rate=0.6,
                channel_noise=0.2,
            ),
        ),
    )


def _train() -> dict[str, Any]:
    return dict(
        log_every=50,
        eval_every=1_000,  # 0: only at the end of each stage
        checkpoint_every=1_000,
        image_every=1_000,  # 0: only at the end of each stage
        num_images=8,
        keep=2,  # checkpoints of each stage
        keep_every=0,  # further ones kept for good, every so many steps
        # Batch statistics over all devices, or "device": over each device's examples
        # (as PyTorch's DDP; SimpleHand was released so, with 32 on each of 8 GPUs).
        batch_norm="global",
        # Updates of a stage that are left out for being inf or nan; one more stops it.
        max_skipped=0,
        precision="auto",  # "auto": bfloat16 on accelerators, float32 on CPU
        donate=True,
        compile_cache="auto",  # "auto": ~/.cache/handjax/xla; "": no cache
    )


def stage(
    *,
    steps: int,
    batch_size: int,
    losses: dict[str, float],
    data: str = "images",
    optimizer: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
    grad_clip: float = 0.0,
    groups: dict[str, dict[str, Any]] | None = None,
    accumulate: int = 1,
    patience: int = 0,
    ramps: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Return the value of one `config.stages.<name>`, with every key present.

    Args:
        steps: number of updates; `batch_size` is over all devices and hosts.
        batch_size: examples in one update.
        losses: weight of each loss that the stage's `loss_fn` returns.
        data: "images" (decoded crops), "features" (of a frozen network, for the same
            pictures), "poses" (the geometry alone) or "labelled_poses" (hands that
            show letters, and the letter as a text).
        optimizer: changes to `name, lr, b1, b2, eps, momentum, weight_decay,
            decay_mask`.
        schedule: changes to `name, warmup_steps, warmup_factor, end_factor,
            boundaries, decay_factor` (see `optimizers.schedule`).
        grad_clip: largest global norm of the gradients; 0 does not clip.
        groups: parameters with an optimiser of their own: name -> `pattern`, a regular
            expression searched in their paths, with any keys of `optimizer` to change,
            `grad_clip` (by the norm of the group's gradients) and `schedule` (a dict
            of changes; without them the group's lr follows the stage's schedule).
        accumulate: number of parts in which the batch goes through the model, for lack
            of memory; their gradients are averaged before the update. Losses that are
            means over the batch stay what they are, sums become those of a part.
        patience: evaluations in a row without a better `pa_mpjpe_mm` after which the
            stage ends before its last step; 0 never. Whatever comes next goes on from
            the step it ended at; the best step's checkpoint is kept beside it.
        ramps: losses whose weight grows: name -> `middle`, the update at which it has
            half of its weight, and `width`; at update n the weight is multiplied by
            sigmoid((n - middle) / width).
    """
    return dict(
        steps=steps,
        batch_size=batch_size,
        losses={name: float(weight) for name, weight in losses.items()},
        data=data,
        optimizer=_updated(_OPTIMIZER, optimizer or {}, "optimizer"),
        schedule=_updated(_SCHEDULE, schedule or {}, "schedule"),
        grad_clip=float(grad_clip),
        groups=groups or {},
        accumulate=accumulate,
        patience=patience,
        ramps=ramps or {},
    )


REST = "rest"
"""What the parameters outside of all groups are called; no name for a group."""


def of_group(
    options: ml_collections.ConfigDict, name: str
) -> ml_collections.ConfigDict:
    """Return `config.stages.<name>` as it applies to one group of parameters."""
    own, group = options.to_dict(), options.groups[name].to_dict()
    own["optimizer"].update({k: group[k] for k in _OPTIMIZER if k in group})
    own["schedule"].update(group.get("schedule", {}))
    own["grad_clip"] = group.get("grad_clip", options.grad_clip)
    return ml_collections.ConfigDict(own)


_OPTIMIZER = dict(
    name="adamw",
    lr=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    momentum=0.9,  # of "sgd"
    weight_decay=0.01,
    decay_mask="no_1d",  # "paper": names with `bn` or `bias` are spared; "all": none
)
_SCHEDULE = dict(
    name="cosine",
    warmup_steps=0,
    warmup_factor=0.0,  # of lr, at the first step of the warm-up
    end_factor=0.0,  # of lr, at the last step of "cosine"
    boundaries=(0.5,),  # of "step": fractions of the run at which lr drops
    decay_factor=0.1,  # of "step": what each drop multiplies lr by
)


def _updated(
    defaults: dict[str, Any], changes: dict[str, Any], where: str
) -> dict[str, Any]:
    unknown = sorted(set(changes) - set(defaults))
    if unknown:
        raise UserError(
            f"{where} has no key {unknown[0]!r}{suggest(unknown[0], defaults)}"
        )
    return {**defaults, **changes}


# --- Comparing and saving ----------------------------------------------------


Config = ml_collections.ConfigDict | Mapping[str, Any]


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a nested config's leaves as ("train.log_every", 50), tuples as lists."""
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping) and len(value):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{key}", {}
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def to_json(config: ml_collections.ConfigDict) -> str:
    """Return the resolved config as readable JSON, with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: str | Path) -> ml_collections.ConfigDict:
    """Rebuild a config from a file with the text of `to_json`; see `from_json`."""
    return from_json(Path(path).read_bytes(), path)


def from_json(
    text: str | bytes, name: object = "config.json"
) -> ml_collections.ConfigDict:
    """Rebuild a config from the text of `to_json` (tuples come back as tuples).

    Keys that the config of an earlier version lacks get their defaults, and those of
    `config.model` the values of `LATER_MODEL_KEYS`. So the default of a new key has to
    be what was done before there was one.

    Args:
        text: As `to_json` returns it.
        name: Of the file, begins messages.

    Raises:
        UserError: It is not a config.
    """
    found = json_files.parse(text, name)
    json_files.checked(found, name, _OF_A_CONFIG, _NO_CONFIG)

    def tuples(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return value

    config = tuples(found)
    # Workdirs of earlier versions have this key under "train".
    json_files.checked(config.get("train", {}), f"{name}: train", {}, _NO_CONFIG)
    if "init_from" in config.get("train", {}):
        config.setdefault("init_from", config["train"].pop("init_from"))
    model = config.get("model", {})
    if config.get("family") == "tore" and "outputs" in model:
        model.setdefault("output_unit", model.pop("outputs"))
    stages = {
        name: stage(steps=1, batch_size=1, losses={}) for name in config["stages"]
    }
    later = LATER_MODEL_KEYS.get(config.get("family", ""), {})
    defaults = {**base().to_dict(), "model": later, "stages": stages}
    _check_kinds(config, defaults, str(name))
    return ml_collections.ConfigDict(_completed(config, defaults))


_NO_CONFIG = "It is not a config of handjax."
_OF_A_CONFIG = {"family": str, "model": dict, "stages": dict}


def _check_kinds(values: Any, defaults: Any, where: str) -> None:
    """Refuse values of another kind than their defaults: text for a number."""
    if isinstance(defaults, dict):
        json_files.checked(values, where, {}, _NO_CONFIG)
        for key in defaults:
            if key in values:
                _check_kinds(values[key], defaults[key], f"{where}: {key}")
        return
    for kinds in ((int, float), (str,), (tuple,)):
        known = isinstance(defaults, kinds) and values is not None
        if known and isinstance(values, (int, float, str, tuple, dict)):
            if not isinstance(values, kinds):
                raise UserError(
                    f"{where} is {shown(values)}, and {defaults!r} by default. "
                    f"{_NO_CONFIG}"
                )


def _completed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return `values`, with missing keys taken from `defaults`."""
    inner = {
        key: _completed(values[key], default)
        for key, default in defaults.items()
        if isinstance(default, dict) and isinstance(values.get(key), dict)
    }
    return {**defaults, **values, **inner}


def difference(old: Config, new: Config) -> list[str]:
    """List the keys whose values differ, one line each, without neutral keys."""
    a, b = dict(flatten(old)), dict(flatten(new))
    patient = any(key.endswith(".patience") and b[key] for key in b)
    neutral = set(NEUTRAL_KEYS) - set(STOPPING_KEYS if patient else ())
    return [
        f"  config.{key}: {_shown(a, key)} -> {_shown(b, key)}"
        for key in sorted(set(a) | set(b))
        if key not in neutral and _shown(a, key) != _shown(b, key)
    ]


def _shown(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "(absent)"


def evaluated_on(config: ml_collections.ConfigDict, stage: str) -> str:
    """Name of the data set that a stage is evaluated on."""
    labelled = config.stages[stage].data == LABELLED_POSES
    return LETTERS if labelled else config.data.name


# --- Checking ----------------------------------------------------------------


def check(config: ml_collections.ConfigDict) -> None:
    """Refuse values that cannot work, before anything slow is started.

    Raises:
        UserError: names the key, its value, and what is allowed.
    """
    train, mesh = config.train, config.mesh
    _one_of("train.precision", train.precision, PRECISIONS)
    _one_of("train.batch_norm", train.batch_norm, BATCH_NORMS)
    for key in ("log_every", "checkpoint_every", "keep"):
        _at_least(f"train.{key}", train[key], 1)
    for key in ("eval_every", "image_every", "num_images", "keep_every", "max_skipped"):
        _at_least(f"train.{key}", train[key], 0)
    _at_least("mesh.fsdp", mesh.fsdp, 1)
    if mesh.data != -1:
        _at_least("mesh.data", mesh.data, 1)
    _at_least("seed", config.seed, 0)
    _at_least("eval.batch_size", config.eval.batch_size, 1)
    _at_least("eval.num", config.eval.num, 0)
    for key in ("seed", "num_train", "num_test", "max_turn", "max_corrupt"):
        _at_least(f"data.{key}", config.data[key], 0)
    _positive("data.box_scale", config.data.box_scale)
    _at_least("data.crop_size", config.data.crop_size, 16)
    _at_least("data.threads", config.data.threads, 0)
    _at_least("data.feature_views", config.data.feature_views, 1)
    _one_of("data.regions", config.data.regions, REGIONS)
    if not config.stages:
        raise UserError("config.stages is empty; name at least one stage.")
    for name, value in config.stages.items():
        _check_stage(f"stages.{name}", value)
        _check_features(f"stages.{name}.data", value.data, config.model)
        if value.patience and not train.eval_every:
            raise UserError(
                f"config.stages.{name}.patience={value.patience} counts evaluations, "
                "but with config.train.eval_every=0 there is one at the end only; set "
                "train.eval_every, or patience=0."
            )


def _check_features(where: str, data: str, model: ml_collections.ConfigDict) -> None:
    """Refuse pictures for a model of frozen features, and the other way round."""
    features = bool(model.get("features", ""))
    if features and data == "images":
        raise UserError(
            f"config.{where}='images' is of a backbone that is trained; with "
            f"config.model.features={model['features']!r} use {FEATURES!r}."
        )
    if data == FEATURES and not features:
        raise UserError(
            f"config.{where}={FEATURES!r} needs a model on frozen features, such as "
            "config.model.features='frozen' of simplehand and tokenhand; use 'images'."
        )


def _check_stage(where: str, value: ml_collections.ConfigDict) -> None:
    _at_least(f"{where}.steps", value.steps, 1)
    _at_least(f"{where}.batch_size", value.batch_size, 1)
    _at_least(f"{where}.accumulate", value.accumulate, 1)
    _at_least(f"{where}.patience", value.patience, 0)
    _one_of(f"{where}.data", value.data, STAGE_DATA)
    for loss, weight in value.losses.items():
        _at_least(f"{where}.losses.{loss}", weight, 0)
    for loss, ramp in value.ramps.items():
        _check_ramp(f"{where}.ramps.{loss}", loss, ramp, value.losses)
    _check_updates(where, f"{where}.optimizer", value)
    for name, group in value.groups.items():
        here = f"{where}.groups.{name}"
        _check_group(here, name, group)
        _check_updates(here, here, of_group(value, name))


def _check_ramp(where: str, loss: str, ramp: Any, losses: Any) -> None:
    if loss not in losses:
        raise UserError(
            f"config.{where} is of no loss of the stage{suggest(loss, losses)}"
        )
    _known(where, ramp, {"middle", "width"})
    _at_least(f"{where}.middle", ramp.get("middle", None), 0)
    _positive(f"{where}.width", ramp.get("width", None))


def _check_updates(
    where: str, optimizer: str, value: ml_collections.ConfigDict
) -> None:
    """Check the optimiser, clipping and schedule of a stage or parameter group."""
    _one_of(f"{optimizer}.name", value.optimizer.name, OPTIMIZERS)
    _one_of(f"{optimizer}.decay_mask", value.optimizer.decay_mask, DECAY_MASKS)
    _positive(f"{optimizer}.lr", value.optimizer.lr)
    _at_least(f"{where}.grad_clip", value.grad_clip, 0)
    _one_of(f"{where}.schedule.name", value.schedule.name, SCHEDULES)
    _at_least(f"{where}.schedule.warmup_steps", value.schedule.warmup_steps, 0)
    if value.schedule.warmup_steps > value.steps:
        raise UserError(
            f"config.{where}.schedule.warmup_steps={value.schedule.warmup_steps} is "
            f"more than the {value.steps} steps of the stage; warm up for fewer."
        )


def _check_group(where: str, name: str, group: Any) -> None:
    """Check the keys of a parameter group, and its pattern."""
    if name == REST:
        raise UserError(
            f"config.{where}: {REST!r} stands for all other parameters; choose another "
            "name."
        )
    _known(where, group, {"pattern", "schedule", "grad_clip", *_OPTIMIZER})
    _known(f"{where}.schedule", group.get("schedule", {}), _SCHEDULE)
    pattern = group.get("pattern", None)
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"config.{where}.pattern={pattern!r} must be a regular expression for "
            f"paths of parameters, such as '^{name}/' ({error})."
        ) from error


def _known(where: str, values: Any, known: Any) -> None:
    if not isinstance(values, (Mapping, ml_collections.ConfigDict)):
        raise UserError(
            f"config.{where}={values!r} must be a dict with some of the keys "
            f"{', '.join(sorted(known))}."
        )
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(
            f"config.{where} has no key {unknown[0]!r}{suggest(unknown[0], known)}"
        )


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"config.{key}={value!r} is not one of {', '.join(allowed)}"
            f"{suggest(str(value), allowed) if isinstance(value, str) else '.'}"
        )


def _at_least(key: str, value: Any, least: int) -> None:
    if not (
        isinstance(value, (int, float)) and math.isfinite(value) and value >= least
    ):
        raise UserError(f"config.{key}={value!r} must be a number of at least {least}.")


def _positive(key: str, value: Any) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise UserError(f"config.{key}={value!r} must be a number above 0.")
