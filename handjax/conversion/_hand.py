"""Load the hand model that a converted model belongs to."""

from pathlib import Path
from typing import Any

from handjax.errors import UserError
from handjax.mano import model_files

OPEN_HAND = (
    "--hand=open: vertices and joints are meaningless unless the weights were trained "
    "with the open hand; the released ones were trained with MANO's"
)


def chosen(config: Any, hand: str, tips: str) -> model_files.ManoFile:
    """Load the hand of `--hand` and set it in a config.

    Args:
        config: `config.hand` is changed.
        hand: Value of `--hand`.
        tips: Finger-tip vertices of the released code (`skeleton.MANO_TIPS`).

    Raises:
        UserError: None was given.
        OSError: The file cannot be read.
    """
    if not hand:
        raise UserError(
            "--hand is missing: give the MANO_RIGHT.pkl (https://mano.is.tue.mpg.de) "
            "that the weights' vertices belong to, or --hand=open if they were trained "
            "with the open hand."
        )
    if hand != "open":
        config.hand.update(source=str(Path(hand).absolute()), tips=tips)
    return model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )


def notes(hand: str) -> tuple[str, ...]:
    """Return what to warn about."""
    return (OPEN_HAND,) if hand == "open" else ()
