"""Whether a trained tokenizer fits the stage that builds on it, frozen."""

from collections.abc import Sequence
from typing import Any

from handjax.errors import UserError
from handjax.mano import model_files
from handjax.types import Variables


def check(
    config: Any,
    model: Any,
    variables: Variables,
    info: dict[str, Any],
    *,
    fields: Sequence[str],
) -> None:
    """Refuse to start stage "mesh" on a tokenizer that does not fit the config.

    Args:
        config: Of the run.
        model: Of the config, with `num_codes` and `code_dim`.
        variables: Where the codebook is "tokenizer/vq".
        info: Metadata of the checkpoint that they come from.
        fields: Those of `config.model` that a trained tokenizer fixes.

    Raises:
        UserError: names all that does not fit.
    """
    problems = []
    if not bool(variables["codebook"]["tokenizer"]["vq"]["initialized"]):
        problems.append("it was never trained (its codebook is empty)")
    shape = tuple(variables["codebook"]["tokenizer"]["vq"]["embedding"].shape)
    if shape != (model.num_codes, model.code_dim):
        problems.append(
            f"its codebook is {shape[0]} x {shape[1]}, the config's is "
            f"{model.num_codes} x {model.code_dim}"
        )
    trained = info.get("config", {}).get("model", {})
    for key in fields:
        old, new = trained.get(key, getattr(model, key)), getattr(model, key)
        if _plain(old) != _plain(new):
            problems.append(
                f"it was trained with {key}={old!r}, the config has {new!r}"
            )
    if "hand" in info:
        hand = config.hand
        file = model_files.load(hand.source, side=hand.side, tips=hand.tips or None)
        if info["hand"].get("sha256") != file.sha256:
            problems.append(
                f"its hand model was {info['hand'].get('name')!r} "
                f"({str(info['hand'].get('sha256'))[:12]}), the config's is "
                f"{file.name!r} ({file.sha256[:12]})"
            )
    if problems:
        raise UserError(
            "Stage 'mesh' cannot use this tokenizer: "
            + "; ".join(problems)
            + ". Train stage 'tokenizer' with this config, or set the config's values "
            "to the tokenizer's."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
