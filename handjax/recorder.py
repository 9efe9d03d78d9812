"""What leaves the running stage: log lines, evaluations, pictures, checkpoints."""

import time
from collections.abc import Callable
from typing import Any

import jax

from handjax import checkpoints, integrity, logs, optimizers, resume, train_state
from handjax.early_stopping import Patience
from handjax.run import Run
from handjax.stages import Stage
from handjax.train_state import TrainState


class NonFiniteError(RuntimeError):
    """A loss or gradient became inf or nan."""


class Recorder:
    """Metrics, pictures and checkpoints of the running stage."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        store: checkpoints.Checkpoints,
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
        self._since, self._at, self._waited = time.monotonic(), begin, 0.0

    def __enter__(self) -> "Recorder":
        self.progress.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.progress.__exit__(*exc)
        self.writer.close()
        self.store.close()

    def waited(self, load: Callable[[], Any]) -> Any:
        """Call `load` and count the time as waiting for data."""
        start = time.monotonic()
        result = load()
        self._waited += time.monotonic() - start
        return result

    def fetch_later(self, step: int, metrics: dict[str, Any]) -> None:
        """Queue the metrics of this step; take those of the step before.

        A step late, so that the device always has its next step when we wait for it.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Take the metrics that are still on the device.

        Raises:
            NonFiniteError: if one of them is inf or nan.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = jax.device_get(metrics)
        norms = values.pop(train_state.GRAD_NORMS)
        bad = train_state.first_nonfinite(values, norms, self.config)
        if bad:
            raise NonFiniteError(self._nonfinite(step, bad))
        self.sums.add(values)
        self.progress.tick(step)
        self._rates = {name: float(values[name]) for name in self._rates}
        if step % self.options.log_every == 0 or step == self.config.steps:
            self._log(step)

    def _log(self, step: int) -> None:
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        values = {
            **self.sums.mean(),
            **self._rates,
            "images_per_s": (step - self._at) * self.config.batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._since, self._at, self._waited = now, step, 0.0
        self.writer.scalars(step, values)
        self.progress.log(step, values)

    def _nonfinite(self, step: int, bad: str) -> str:
        saved = self.store.steps()
        last = f"step {saved[-1]}" if saved else "none"
        return (
            f"Stage {self.stage.name!r}, step {step}: {bad}. Nothing of it was saved "
            f"(last checkpoint: {last}). Lower config.stages.{self.stage.name}."
            "optimizer.lr, set its grad_clip, or try config.train.precision='float32'."
        )

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
        start = time.monotonic()
        variables = state.variables
        if evaluate and self._evaluate(step, variables):
            save = True
        if self.patience.exhausted:
            last = draw = save = True
            if self.sums.count:
                self._log(step)
        if draw:
            self._draw(step, variables)
        if save:
            self._save(step, state, last=last)
        self._since += time.monotonic() - start  # not the speed of training
        return last

    def _evaluate(self, step: int, variables: Any) -> bool:
        """Whether it is the best evaluation so far, which early stopping keeps."""
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
