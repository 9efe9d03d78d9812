"""Open a model by its name or by where it lies."""

from pathlib import Path
from typing import Any

from handjax.errors import MissingFileError, UserError
from handjax.inference import released
from handjax.inference.photo_predictor import PhotoPredictor
from handjax.inference.predictor import HandPredictor


def load(
    source: str | Path = released.DEFAULT, **options: Any
) -> HandPredictor | PhotoPredictor:
    """Load a model that reconstructs hands from photos.

    >>> import numpy as np
    >>> import handjax
    >>> predictor = handjax.load("runs/few")
    >>> hand = predictor(np.zeros((240, 320, 3), np.uint8), box_px=(60, 40, 260, 220))
    >>> hand.vertices.shape, hand.joints3d.shape, hand.translation.shape
    ((778, 3), (21, 3), (3,))

    Args:
        source: A model that comes with handjax ("landmarks"; `handjax models` lists
            them), a workdir of `handjax.train`, or what `handjax convert` made of the
            weights of a whole model.
        **options: For a name `min_score` and `batch_size`; for a directory those of
            `HandPredictor.from_workdir`: `stage`, `step`, `batch_size`, `tta`,
            `min_score`.

    Raises:
        MissingFileError: There is no such directory, or no checkpoint in it.
        UserError: The model does not reconstruct hands from images.
    """
    if str(source) in released.names():
        found = released.load(released.path_of(str(source)))
        if found.config.family == "landmarks":
            return PhotoPredictor(found, name=str(source), **options)
        return HandPredictor(
            found.config,
            found.model,
            found.variables,
            name=str(source),
            licence=found.about["licence"],
            **options,
        )
    return HandPredictor.from_workdir(_directory(source), **options)


def _directory(source: str | Path) -> Path:
    """Return the workdir that `source` names."""
    path = Path(source)
    if not path.is_dir():
        raise MissingFileError(
            f"{str(source)!r}: there is no such directory and no model of that name; "
            f"pass one of {', '.join(released.names())}, the --workdir of a "
            "handjax.train run, or the --to of handjax.convert."
        )
    if (path / "weights.safetensors").is_file() and not (path / "config.json").exists():
        raise UserError(
            f"{str(source)!r} holds the weights of a part of a model; train one from "
            f"it with --config.init_from={source}."
        )
    return path
