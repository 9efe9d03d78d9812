"""An update that is inf or nan: what is kept of it, so that it can be made again.

`<workdir>/nonfinite/<stage>-<step>/` is a small workdir of its own: `config.json`, one
checkpoint of the state before the update, the batch of each process and `update.json`.
`python -m handjax.replay --update DIR` reads it.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from handjax.checkpoints.store import CheckpointError, Checkpoints
from handjax.config import schema as configs
from handjax.errors import HandjaxError, MissingFileError, UserError
from handjax.family.stage import Stage
from handjax.io import array_files, atomic_files, console, json_files
from handjax.losses import supervision
from handjax.training import resume
from handjax.training.run import Run
from handjax.training.step import TrainState
from handjax.types import Batch


class NonFiniteError(HandjaxError, RuntimeError):
    """A loss or gradient became inf or nan."""

    def __init__(self, stage: str, step: int, what: str):
        super().__init__(f"Stage {stage!r}, step {step}: {what}.")
        self.step, self.what = step, what

    def kept_in(self, directory: Path | None, saved: Sequence[int]) -> "NonFiniteError":
        """Return the error, with what can be done about it.

        Args:
            directory: What `keep` returned.
            saved: Steps of the stage's checkpoints.
        """
        last = f"step {saved[-1]}" if saved else "none"
        self.args = (  # the message
            f"{self} The model was not changed by it (last checkpoint: {last}). "
            + (
                f"The update is kept: `python -m handjax.replay --update {directory}` "
                "makes it again and says where it breaks. "
                if directory
                else ""
            )
            + "The same command with --config.train.max_skipped=1 leaves it out; if "
            "others follow, lower the stage's optimizer.lr, set its grad_clip, or try "
            "config.train.precision='float32'.",
        )
        return self


class Kept(NamedTuple):
    """`update.json`: which update it was, and what was seen of it."""

    stage: str
    step: int
    """Of the update; the state is that of the step before."""
    what: str
    """The first quantity that was not finite."""
    dtype: str
    """Of the computation."""
    processes: int
    """Which had a part of the batch each."""


def keep(
    run: Run, stage: Stage, state: TrainState, batch: Batch, error: NonFiniteError
) -> Path | None:
    """Write state and batch of an update; every process calls it.

    Args:
        run: of the update.
        stage: of the update.
        state: before the update.
        batch: this process's part, on the host.
        error: what was seen.

    Returns:
        The directory; None if the disk would not take it.
    """
    directory = run.workdir / "nonfinite" / f"{stage.name}-{error.step}"
    if run.first:
        shutil.rmtree(directory, ignore_errors=True)
    try:
        store = Checkpoints(directory, stage.name)
        parts = resume.saved_parts(state)
        meta = {"stage": stage.name, "step": error.step - 1, "metrics": {}}
        store.save(error.step - 1, state.variables, parts, meta)
        store.wait()
        store.close()
        _write_batch(directory, batch)
        if run.first:
            dtype = getattr(run.model, "dtype", "float32")
            kept = Kept(
                stage.name, error.step, error.what, str(dtype), jax.process_count()
            )
            text = configs.to_json(run.config).encode()
            atomic_files.write_bytes(directory / "config.json", text)
            atomic_files.write_json(directory / "update.json", kept._asdict())
    except (CheckpointError, OSError) as failure:
        run.say(f"the update could not be kept: {console.first_line(failure)}")
        return None
    return directory


def _write_batch(directory: Path, batch: Batch) -> None:
    arrays = {k: np.asarray(v) for k, v in batch._asdict().items() if v is not None}
    data = io.BytesIO()
    np.savez(data, **arrays)
    name = f"batch-{jax.process_index()}.npz"
    atomic_files.write_bytes(directory / name, data.getvalue())


def read(directory: Path) -> tuple[Kept, Batch]:
    """Read what `keep` wrote, the parts of all processes one after the other.

    Raises:
        MissingFileError: The directory holds no update.
    """
    if not (directory / "update.json").is_file():
        raise MissingFileError(
            f"{str(directory)!r} holds no update: it has no update.json. Pass a "
            "directory WORKDIR/nonfinite/STAGE-STEP that training has named."
        )
    path = directory / "update.json"
    found = json_files.read(path, get_type_hints(Kept), "Copy the directory again.")
    kept = Kept(**{name: found[name] for name in Kept._fields})
    parts: list[dict[str, Any]] = []
    for process in range(kept.processes):
        path = directory / f"batch-{process}.npz"
        if not path.is_file():
            raise MissingFileError(
                f"{path} is missing; copy the files of all {kept.processes} processes "
                "here."
            )
        parts.append(array_files.load_npz(path))
    if not parts or any(set(part) != set(parts[0]) for part in parts):
        raise UserError(f"{directory}: its parts do not belong together.")
    if strangers := sorted(set(parts[0]) - set(Batch._fields)):
        raise UserError(f"{directory}: {strangers[0]!r} is not a field of a batch.")
    missing = {name: None for name in Batch._fields if name not in parts[0]}
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return kept, Batch(**joined, **missing)


def brought(batch: Batch) -> str:
    """Name the batch's own values that count and are not finite; "" if none."""
    found = []
    for name, values in supervision.zero_unannotated(batch)._asdict().items():
        if values is None or not jnp.issubdtype(values.dtype, jnp.floating):
            continue
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            rows = ", ".join(map(str, np.flatnonzero(~finite)))
            found.append(f"{name} of example {rows}")
    return "; ".join(found)
