"""Write checkpoints in the background, and restore them after any crash.

`checkpoints/<stage>/<step>/` holds `variables` (params and every other collection),
`train` (optimiser state, random key) and `meta` (JSON: stage, config, hashes, sums of
metrics that are not yet logged). The step is also the position of the loader.
"""

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from handjax.checkpoints import integrity
from handjax.distributed import processes
from handjax.errors import HandjaxError, UserError
from handjax.io import console

# Orbax tells absl's log about every default it takes.
logging.getLogger("absl").setLevel(logging.ERROR)

_NOT_THE_FILE = (MemoryError, TypeError, NameError, jax.errors.JaxRuntimeError)
"""Read errors that do not mean the checkpoint is corrupt."""


class Restored(NamedTuple):
    """A checkpoint that `Checkpoints.restore` has read."""

    step: int
    variables: Any
    train: Any
    meta: dict[str, Any]


class CheckpointError(HandjaxError, RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(
        self, workdir: Path, stage: str, *, keep: int = 2, keep_every: int = 0
    ):
        self.directory = Path(workdir).absolute() / "checkpoints" / stage
        self.stage = stage
        self._best = _OneStep()
        policies: list[Any] = [checkpoint_managers.LatestN(keep), self._best]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers=item_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def keep_best(self, step: int) -> None:
        """Keep this step's checkpoint besides the others, until another is the best.

        It is not recorded on disk: call it again for every new `Checkpoints`.
        """
        self._best.step = step

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, variables: Any, train: Any, meta: dict[str, Any]) -> None:
        """Write a checkpoint in the background; the arrays may be donated afterwards.

        Raises:
            CheckpointError: The disk is full or the last write has failed.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._check_space(variables, train)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    train=ocp.args.StandardSave(train),
                    meta=ocp.args.JsonSave(
                        {**meta, "crc32": integrity.checksums((variables, train))}
                    ),
                ),
                force=True,
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
            CheckpointError: The save failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Stop the background writer."""
        self._manager.close()

    def restore(
        self, variables: Any, train: Any, say: Callable[[str], None]
    ) -> Restored | None:
        """Restore the newest readable checkpoint; None where there is none.

        An unreadable one is moved to `checkpoints/unreadable/` and reported; the one
        before it is tried next.

        Args:
            variables: Shapes, dtypes and shardings to restore to.
            train: The same for the optimiser's part.
            say: Receives one line for each checkpoint that cannot be read.

        Raises:
            CheckpointError: There are checkpoints and none can be read, or the system
                does not hand out the files of one, which is left where it is.
            UserError: The newest is of a model with other names or shapes.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                with integrity.quiet():
                    self._check_together(step)
                    difference = integrity.difference(variables, self._shapes(step))
                    if not difference:
                        return self._restore(step, variables, train)
            except (*_NOT_THE_FILE, CheckpointError):
                raise
            except Exception as error:
                refused = integrity.withheld(self.directory / str(step), error)
                if refused:
                    raise self._withheld(step, refused) from error
                say(self._set_aside(step, error))
            else:  # intact, but of another model: leave it where it is
                raise UserError(
                    f"Checkpoint {self.directory}/{step} does not fit this config: "
                    f"{difference}. Use the config it was made with, or another "
                    "--workdir."
                )
        if steps:
            raise CheckpointError(
                f"None of the checkpoints {steps} of {self.directory} can be read. "
                "They were moved to checkpoints/unreadable; run the same command to "
                f"train stage {self.stage!r} from its beginning."
            )
        return None

    def meta(self, step: int) -> dict[str, Any]:
        """Read the JSON part of one checkpoint."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def _shapes(self, step: int) -> Any:
        shapes = self._manager.item_metadata(step)["variables"]
        if not shapes:
            raise OSError("the description of its arrays is missing")
        return shapes

    def _restore(self, step: int, variables: Any, train: Any) -> Restored:
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(variables),
                train=ocp.args.StandardRestore(train),
                meta=ocp.args.JsonRestore(),
            ),
        )
        meta = found["meta"]
        integrity.verify((found["variables"], found["train"]), meta.get("crc32", {}))
        return Restored(step, found["variables"], found["train"], meta)

    def _check_together(self, step: int) -> None:
        """Agree on whether a step can be read, before any process reads it.

        Raises:
            OSError: Process 0 finds it damaged; raised on every process.
            CheckpointError: The system does not let process 0 read it.
        """
        if jax.process_count() == 1:
            return
        first, directory = jax.process_index() == 0, self.directory / str(step)
        wrong = integrity.unreadable(directory) if first else ""
        if processes.all_agree(not wrong):
            return
        refused = integrity.withheld(directory, OSError(wrong)) if first else ""
        if not processes.all_agree(not refused):
            raise self._withheld(step, refused or "process 0 says so")
        raise OSError(wrong or "process 0 says so")

    def _withheld(self, step: int, reason: str) -> CheckpointError:
        return CheckpointError(
            f"Checkpoint {self.directory}/{step} cannot be read now: {reason}. It may "
            "be whole and stays where it is; put that right and run the same command."
        )

    def _set_aside(self, step: int, error: Exception) -> str:
        target = self.directory.parent / "unreadable" / f"{self.stage}-{step}"
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
        processes.wait_for_all(f"set {step} aside")
        self._manager.reload()
        before = self.steps()
        return (
            f"checkpoint {self.stage}/{step} cannot be read "
            f"({type(error).__name__}: {console.first_line(error)}); "
            f"moved to {target}; "
            + (f"going back to step {before[-1]}" if before else "no older one is left")
        )

    def _check_space(self, *trees: Any) -> None:
        need = sum(_num_bytes(leaf) for leaf in jax.tree.leaves(trees))
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(
                errno.ENOSPC, f"{need / 1e6:.0f} MB to write, {free / 1e6:.0f} MB free"
            )

    def _failed(self, error: Exception) -> CheckpointError:
        for leftover in self.directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        reason = console.first_line(error)
        failed = f"Could not save a checkpoint to {self.directory}: {reason}"
        if not self.directory.exists():
            return CheckpointError(
                f"{failed}. The folder is gone: somebody has moved or "
                "deleted it while this run was training. Put it back and run the same "
                "command to go on from its last checkpoint, or start again."
            )
        # What the manager remembers may not have reached the disk.
        self._manager.reload()
        steps = self.steps()
        last = f"step {steps[-1]} is intact" if steps else "there is none before it"
        return CheckpointError(
            f"{failed}. Of the earlier checkpoints, {last}; free some space (or choose "
            "another --workdir) and run the same command to go on from there."
        )


class _OneStep(checkpoint_managers.PreservationPolicy):
    step = 0

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def item_handlers() -> dict[str, Any]:
    """Return handlers, so that a manager that has not saved yet can restore."""
    return {
        "variables": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


def _num_bytes(leaf: Any) -> int:
    return sum(shard.data.nbytes for shard in leaf.addressable_shards)


def abstract(tree: Any, shardings: Any) -> Any:
    """Return shapes, dtypes and shardings of a tree, to restore a checkpoint to."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
        tree,
        shardings,
    )


# --- Reading a workdir -------------------------------------------------------
