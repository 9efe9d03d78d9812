r"""Convert published weights to handjax's.

    python -m handjax.convert model.safetensors --from timm --to weights/fastvit_ma36
    python -m handjax.convert model.safetensors --from clip_text --to weights/clip
    python -m handjax.convert hand_landmark_full.tflite --from mediapipe --to out
    python -m handjax.convert epoch_200_rerun1 --from simplehand --to runs/simplehand \
        --hand MANO_RIGHT.pkl

A backbone or an encoder of texts is then given to training as --config.init_from=DIR;
a whole model is a workdir for handjax.predict and handjax.evaluate, and can be given to
training, too.
Files of torch.save are read without PyTorch, those of TensorFlow Lite without
TensorFlow, and nothing in them is run. Every entry is
used or skipped by a rule that is printed; otherwise nothing is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handjax.errors import MissingFileError, UserError
from handjax.io import command_line
from handjax.io.command_line import Parser


def _parser() -> Parser:
    parser = Parser("convert", __doc__)
    add = parser.add_argument
    add(
        "source",
        help="file of weights: .pt, .pth, .ckpt, .safetensors, .tflite or none",
    )
    add("--from", dest="origin", default="", help="where it comes from, such as timm")
    add("--to", required=True, help="directory that gets the result")
    add("--name", default="", help="backbone; default: found from the weights")
    add(
        "--key",
        default="",
        help="key of the weights in a checkpoint that holds several, such as "
        "state_dict; default: their moving average, if there is one",
    )
    add("--hand", default="", help="MANO_RIGHT.pkl, or open; whole models need it")
    add(
        "--hierarchy",
        default="",
        help="mano_downsampling.npz, or built; METRO's and FastMETRO's hands need it",
    )
    add("--overwrite", action="store_true", help="replace an earlier conversion")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a file of weights; return the exit code."""
    return command_line.run(lambda: _convert(_parser().parse_args(argv)))


def _convert(arguments: argparse.Namespace) -> None:
    print(summary(run(arguments), arguments.to))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert as the command line says; returns what conversion.json holds.

    Raises:
        UserError: The source is not known, or its weights cannot be taken.
        OSError: The file cannot be read, or the directory is in use.
    """
    from handjax import conversion

    module = conversion.load(arguments.origin)
    from handjax import __version__
    from handjax.conversion import directory
    from handjax.io import torch_files

    source, target = Path(arguments.source), Path(arguments.to)
    if not source.is_file():
        raise MissingFileError(f"{str(source)!r}: there is no such file of weights.")
    directory.check_free(target, arguments.overwrite)
    if hasattr(module, "read"):  # a source with a file format of its own
        if arguments.key:
            raise UserError(f"--key: files of {arguments.origin} hold one network.")
        saved = module.read(source)
        weights = torch_files.StateDict(saved, "", ())
    else:
        saved = torch_files.read(source)
        weights = torch_files.state_dict(saved, source, key=arguments.key)
    state_dict = weights.entries
    epoch = saved.get("epoch") if isinstance(saved, dict) else None
    options = conversion.Options(
        name=arguments.name,
        hand=arguments.hand,
        hierarchy=arguments.hierarchy,
        epoch=epoch if type(epoch) is int else None,
    )
    result = module.convert(state_dict, options)
    _check_finite(result.variables)
    record = {
        "schema": "handjax/conversion",
        "schema_version": 1,
        "handjax": __version__,
        "from": arguments.origin,
        "source": {
            "file": source.name,
            "sha256": _sha256(source),
            "entries": len(state_dict),
            "key": weights.key,
            "averaged": weights.averaged,
            "other_keys": list(weights.others),
            "url": module.SOURCE,
        },
    }
    return directory.write(target, result, record, arguments.overwrite)


def _check_finite(variables: Any) -> None:
    import jax
    import numpy as np

    for path, leaf in jax.tree.leaves_with_path(variables):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} has values that are not finite; the weights are of no use."
            )


def _sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(record: dict[str, Any], target: str) -> str:
    """Summarise what was converted and left out, the licence and the next step."""
    source, skipped = record["source"], record["skipped"]
    left_out = sum(map(len, skipped.values()))
    what = f"{record['family']} with {record['backbone']}".removeprefix(" with ")
    lines = [
        f"{source['file']}: {what}, {record['parameters']:,} parameters",
        f"{source['entries'] - left_out} of {source['entries']} entries used, "
        f"{left_out} skipped",
        *_which(source),
        *(f"  {len(names)} skipped: {rule}" for rule, names in skipped.items()),
        f"licence: {record['licence']}",
        *(f"warning: {note}" for note in record["notes"]),
        f"written to {target}; next:",
        f"  {_next(record, target)}",
    ]
    return "\n".join(lines)


def _which(source: dict[str, Any]) -> list[str]:
    """Say which of several weights were taken."""
    if not source["other_keys"]:
        return []
    kind = "averaged weights" if source["averaged"] else "weights"
    others = " or ".join(f"--key={key}" for key in source["other_keys"])
    return [f"{kind}, those under {source['key']!r}; others: {others}"]


def _next(record: dict[str, Any], target: str) -> str:
    if record["kind"] == "model":
        return f"python -m handjax.predict photo.jpg --workdir {target} --output out"
    if record["part"] == "text_encoder":
        return (
            "python -m handjax.train --config configs/mmhmr.py:text --workdir "
            f"runs/mine --config.model.text={record['backbone']} "
            f"--config.data.vocabulary=VOCABULARY --config.init_from={target}"
        )
    if record["part"] == "palm_detector":
        return "nothing to do: handjax has these weights, and detects hands with them"
    return (
        "python -m handjax.train --config configs/simplehand.py --workdir runs/mine "
        f"--config.model.backbone={record['backbone']} --config.init_from={target}"
    )


if __name__ == "__main__":
    sys.exit(main())
