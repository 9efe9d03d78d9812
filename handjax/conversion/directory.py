"""Write directories with `handjax.convert`, and read them for `config.init_from`.

A backbone is `weights.safetensors`, flat names such as "params/conv1/kernel"; a whole
model is a workdir with config.json and one checkpoint. Both have `conversion.json`.
"""

from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from handjax.checkpoints.store import Checkpoints
from handjax.config import schema as configs
from handjax.conversion import Converted
from handjax.errors import UserError
from handjax.io import atomic_files, json_files, torch_files
from handjax.types import Variables

RECORD = "conversion.json"
WEIGHTS = "weights.safetensors"
_RECORD = {"kind": str, "backbone": (str, type(None)), "licence": str}


def is_conversion(directory: str | Path) -> bool:
    """Return whether `handjax.convert` made the directory."""
    return (Path(directory) / RECORD).is_file()


def read_record(directory: str | Path) -> dict[str, Any]:
    """Read conversion.json: `kind` ("backbone", "model"), `backbone`, `licence`...

    Raises:
        UserError: It is damaged.
    """
    path = Path(directory) / RECORD
    record = json_files.read(path, advice="Convert the weights again.")
    if record.get("schema") != "handjax/conversion":
        raise UserError(f"{path} was not written by handjax.convert.")
    return json_files.checked(record, path, _RECORD, "Convert the weights again.")


def read_backbone(directory: str | Path) -> Variables:
    """Read the variables of a converted backbone, numpy.

    Raises:
        UserError: The file is damaged.
        OSError: It cannot be read.
    """
    flat = torch_files.read(Path(directory) / WEIGHTS)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def write(
    directory: Path, converted: Converted, record: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """Write a conversion, completely or not at all.

    Args:
        directory: Must not exist, be empty, or hold an earlier conversion.
        converted: What to write.
        record: Of the source, for conversion.json; see `convert`.
        overwrite: Whether an earlier conversion may be replaced.

    Returns:
        The content of conversion.json.

    Raises:
        UserError: The directory is in use.
    """
    check_free(directory, overwrite)
    record = record | _description(converted)
    with atomic_files.new_directory(directory) as temporary:
        if converted.config is None:
            _write_weights(temporary / WEIGHTS, converted, record)
        else:
            _write_workdir(temporary, converted)
        atomic_files.write_json(temporary / RECORD, record)
    return record


def check_free(directory: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier conversion.

    Raises:
        UserError: The directory is in use; says what to do.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not is_conversion(directory):
        raise UserError(
            f"--to={str(directory)!r} exists and is not an earlier conversion; name a "
            "new directory."
        )
    if not overwrite:
        raise UserError(
            f"--to={str(directory)!r} holds an earlier conversion; pass --overwrite to "
            "replace it, or name a new directory."
        )


def _description(converted: Converted) -> dict[str, Any]:
    flat: Any = flax.traverse_util.flatten_dict(converted.variables, sep="/")
    return {
        "kind": "backbone" if converted.config is None else "model",
        "backbone": converted.backbone,
        "part": converted.part,
        "family": "" if converted.config is None else converted.config.family,
        "stage": converted.stage,
        "step": converted.step,
        "licence": converted.licence,
        "parameters": sum(
            int(np.size(value))
            for path, value in flat.items()
            if path.startswith("params/")
        ),
        "variables": len(flat),
        "skipped": dict(converted.skipped),
        "notes": list(converted.notes),
    }


def _write_weights(path: Path, converted: Converted, record: dict[str, Any]) -> None:
    import safetensors.numpy

    flat = flax.traverse_util.flatten_dict(converted.variables, sep="/")
    source = record["source"]
    metadata = {
        "backbone": converted.backbone,
        "licence": converted.licence,
        "source": source["file"],
        "source_sha256": source["sha256"],
        "handjax": record["handjax"],
    }
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in flat.items()}, metadata
    )
    atomic_files.write_bytes(path, data)


def _write_workdir(directory: Path, converted: Converted) -> None:
    """Write what `handjax.predict` and `handjax.evaluate` take."""
    import jax
    import jax.numpy as jnp

    config, step = converted.config, converted.step
    atomic_files.write_bytes(
        directory / "config.json", configs.to_json(config).encode()
    )
    store = Checkpoints(directory, converted.stage)
    meta = {
        "stage": converted.stage,
        "family": config.family,
        "config": config.to_dict(),
        "hand": dict(converted.hand_info),
        "metrics": {},
    }
    # There is no optimiser state to go on with; see `config.init_from`.
    train = {"step": jnp.asarray(step, jnp.int32)}
    store.save(step, jax.tree.map(jnp.asarray, converted.variables), train, meta)
    store.wait()
    store.close()
