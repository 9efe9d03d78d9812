"""What leaves the running stage: log lines, evaluations, pictures, checkpoints."""

from collections.abc import Callable
from typing import Any

import jax

from handjax.checkpoints import integrity
from handjax.checkpoints.store import Checkpoints
from handjax.family.stage import Stage
from handjax.training import logs, optimizers, resume
from handjax.training import step as train_state
from handjax.training.early_stopping import Patience
from handjax.training.nonfinite import NonFiniteError
from handjax.training.run import Run
from handjax.training.step import TrainState


class Recorder:
    """Metrics, pictures and checkpoints of the running stage."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        store: Checkpoints,
        sums: logs.Metrics,
        patience: Patience,
        begin: int,
        meta: dict[str, Any],
    ):
        self.run, self.stage, self.store = run, stage, store
        self.sums, self.patience = sums, patience
        self.config, self.options = run.config.stages[stage.name], run.config.train
        self.meta = meta
        self.writer = logs.Writer(run.workdir, stage.name, begin, active=run.first)
        self.progress = logs.Progress(stage.name, self.config.steps, active=run.first)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._rates = dict.fromkeys(optimizers.schedules(self.config), 0.0)
        self._at, self._shares = begin, logs.Shares()

    def __enter__(self) -> "Recorder":
        self.progress.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.progress.__exit__(*exc)
        self.writer.close()
        self.store.close()

    def timed_load(self, load: Callable[[], Any]) -> Any:
        """Call `load` and count the time as waiting for data."""
        with self._shares.of("data"):
            return load()

    def fetch_later(self, step: int, metrics: dict[str, Any]) -> None:
        """Queue the metrics of this step; take those of the step before.

        A step late, so that the device always has its next step when we wait for it.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Take the metrics that are still on the device.

        Raises:
            NonFiniteError: if one of them is inf or nan, and none may be skipped.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = jax.device_get(metrics)
        norms = values.pop(train_state.GRAD_NORMS)
        bad = train_state.first_nonfinite(values, norms, self.config)
        skipped = int(values.pop("skipped"))
        if bad and skipped > self.options.max_skipped:
            raise NonFiniteError(self.stage.name, step, bad)
        if bad:
            self.run.say(
                f"stage {self.stage.name}, step {step}: {bad}; the update is left out "
                f"({skipped} of at most {self.options.max_skipped})"
            )
        else:
            self.sums.add(values)
        self.progress.tick(step)
        self._rates = {name: float(values[name]) for name in self._rates}
        if step % self.options.log_every == 0 or step == self.config.steps:
            self._log(step)

    def _log(self, step: int) -> None:
        seconds, shares = self._shares.take()
        # Evaluations and checkpoints are not the speed of training.
        training = max(seconds * (shares["step"] + shares["data"]), 1e-9)
        values = {
            **self.sums.mean(),
            **self._rates,
            "images_per_s": (step - self._at) * self.config.batch_size / training,
            **self._epochs(step),
            **{f"share_{name}": share for name, share in shares.items()},
        }
        self._at = step
        self.writer.scalars(step, values)
        self.progress.log(step, values)

    def _epochs(self, step: int) -> dict[str, float]:
        """Return how often each data set was passed through since the first step."""
        seen = self.run.data.drawn(self.stage, step * self.config.batch_size)
        return {f"epochs_{each.name}": each.epochs for each in seen}

    def at_intervals(
        self, step: int, state: TrainState, *, last: bool, stopping: bool
    ) -> bool:
        """Evaluate, draw and save when it is time; True if the stage ends here.

        It ends at its last step or when its patience does. Saving comes last, so that
        whatever a checkpoint's step has to log is logged when the checkpoint exists: a
        run that is killed misses no line.
        """
        save = last or stopping or step % self.options.checkpoint_every == 0
        evaluate = last or _due(step, self.options.eval_every)
        draw = last or _due(step, self.options.image_every)
        if not (save or evaluate or draw):
            return False
        self.flush()
        variables = state.variables
        with self._shares.of("evaluation"):
            if evaluate and self._evaluate(step, variables):
                save = True
        if self.patience.exhausted:
            last = draw = save = True
            if self.sums.count:
                self._log(step)
        with self._shares.of("evaluation"):
            if draw:
                self._draw(step, variables)
        with self._shares.of("checkpoint"):
            if save:
                self._save(step, state, last=last)
        return last

    def _evaluate(self, step: int, variables: Any) -> bool:
        """Evaluate the stage; return whether it is the best evaluation so far."""
        evaluate = self.run.hooks.evaluate
        if evaluate is None:
            return False
        scores = evaluate(self.run, self.stage, variables, step)
        self.writer.scalars(step, scores)
        best = self.patience.see(step, scores)
        if best:
            self.store.keep_best(step)
        return best

    def _draw(self, step: int, variables: Any) -> None:
        if self.run.hooks.draw is None:
            return
        pictures = self.run.hooks.draw(self.run, self.stage, variables, step)
        for name, image in pictures.items():
            self.writer.image(step, name, image)

    def _save(self, step: int, state: TrainState, *, last: bool) -> None:
        meta = {**self.meta, "step": step, "metrics": self.sums.state()}
        if self.patience.limit:
            meta["patience"] = self.patience.state()
        if last:
            trained = train_state.trained(state.variables, self.stage)
            meta["trained_sha256"] = self.meta["trained_sha256"] = integrity.sha256(
                trained
            )
        self.store.save(step, state.variables, resume.saved_parts(state), meta)

    def wait_for_disk(self) -> None:
        """Block until the last checkpoint is complete."""
        self.store.wait()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
