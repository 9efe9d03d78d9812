"""Evaluations and pictures that the trainer makes at intervals."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from handjax.checkpoints.workdir import stage_steps
from handjax.config import schema as configs
from handjax.distributed import processes, sharding
from handjax.family.stage import Stage
from handjax.io import atomic_files, json_files
from handjax.training import codebook_curves
from handjax.training.run import Run
from handjax.training.step import trained
from handjax.types import Batch, HandOutput

SHOWN = ("pa_mpjpe_mm", "pa_mpvpe_mm", "mpjpe_mm", "mpvpe_mm", "f5", "f15")
"""Columns of the table at the end; the files hold all."""


class Reports:
    """Evaluates and draws; compiled predictions and the mean hand are kept."""

    def __init__(self) -> None:
        self._predict: dict[str, Predict] = {}
        self._mean_hands: dict[str, Any] = {}
        self._sample: dict[tuple[str, bool], Batch] = {}

    # --- Evaluation ----------------------------------------------------------

    def evaluate(
        self, run: Run, stage: Stage, variables: Any, step: int
    ) -> dict[str, Any]:
        """Measure on the test split; writes `eval/<step>/<benchmark>.json`."""
        from handjax.evaluation import mean_hand
        from handjax.evaluation.split_errors import measure

        where = configs.evaluated_on(run.config, stage.name)
        if where not in self._mean_hands:
            self._mean_hands[where] = mean_hand.fit(run.data.train_split(stage))
        result = measure(
            run.model,
            variables,
            stage,
            run.data.evaluation(stage),
            root=run.skeleton.roots[run.config.data.root],
            mean_hand=self._mean_hands[where],
            predict=self._compiled(run, stage),
            skip_nonfinite=True,  # a bad hand must not end a training
        ).report()
        name = benchmark_name(run, stage)
        report = {
            "benchmark": name,
            "protocol": "procrustes=freihand (reflections allowed)",
            "stage": stage.name,
            "step": step,
            **result,
        }
        if run.first:
            atomic_files.write_json(_path(run.workdir, step, name), report)
        metrics = result["metrics"]
        run.say(
            f"evaluation of {stage.name} at step {step} on {result['count']} hands: "
            + ", ".join(f"{k} {metrics[k]:.2f}" for k in SHOWN[:4] if metrics[k])
        )
        if result["nonfinite"]:
            run.say(
                f"{result['nonfinite']} hands are left out: their predictions or "
                "annotations hold nan or infinite values."
            )
        scores = {f"eval_{k}": v for k, v in metrics.items()}
        if any(k.startswith("codebook/") for k in trained(variables, stage)):
            scores["nearest_pair"] = codebook_curves.nearest_pair(variables)
        return {k: v for k, v in scores.items() if v is not None}

    def _compiled(self, run: Run, stage: Stage) -> "Predict":
        if stage.name not in self._predict:
            self._predict[stage.name] = Predict(run.model, stage, run.mesh)
        return self._predict[stage.name]

    # --- Pictures ------------------------------------------------------------

    def draw(
        self, run: Run, stage: Stage, variables: Any, step: int
    ) -> dict[str, np.ndarray]:
        """Draw the predictions of the first test hands, and the use of the codes.

        Writes `images/<stage>_<step>.png`, `codebook/usage_<stage>_<step>.png` and, in
        stages that train a codebook, `codebook/health_<stage>.png`.
        """
        if not run.config.train.num_images:
            return {}
        batch = self._drawn(run, stage)
        output: HandOutput = jax.device_get(
            self._compiled(run, stage)(variables, batch)
        )
        if not run.first:
            return {}
        pictures = {"predictions": self._sheet(run, batch, output)}
        _save(
            run.workdir / "images" / f"{stage.name}_{step}.png",
            pictures["predictions"],
        )
        usage = usage_panel(variables)
        if usage is not None:
            pictures["codebook"] = usage
            _save(run.workdir / "codebook" / f"usage_{stage.name}_{step}.png", usage)
        health = codebook_curves.panel(run.workdir / "metrics.jsonl", stage.name)
        if health is not None:
            pictures["codebook_health"] = health
            _save(run.workdir / "codebook" / f"health_{stage.name}.png", health)
        return pictures

    def _sheet(self, run: Run, batch: Batch, output: HandOutput) -> np.ndarray:
        from handjax.visualization.render import contact_sheet

        return contact_sheet(
            batch,
            output,
            run.hand.faces,
            skeleton=run.skeleton,
            num=run.config.train.num_images,
        )

    def _drawn(self, run: Run, stage: Stage) -> Batch:
        which = configs.evaluated_on(run.config, stage.name), stage.needs_image
        if which not in self._sample:
            self._sample[which] = next(iter(run.data.evaluation(stage)))
        return self._sample[which]


class Predict:
    """A stage's predictions; each device makes some of them, all processes get all.

    Every process calls it with the same numpy batches, all of one size.
    """

    def __init__(self, model: Any, stage: Stage, mesh: jax.sharding.Mesh):
        self._model, self._stage, self._mesh = model, stage, mesh
        self._compiled: Any = None

    def __call__(self, variables: Any, batch: Batch) -> HandOutput:
        """Predict a batch by the stage, without `logits`, which are large."""
        shared = sharding.shared_batch(self._mesh, batch)
        if self._compiled is None:
            self._compiled = self._compile(variables, shared, len(batch.index))
        return self._compiled(variables, shared)

    def _compile(self, variables: Any, shared: Batch, size: int) -> Any:
        def predict(variables: Any, batch: Batch) -> HandOutput:
            output = self._stage.predict_fn(self._model, variables, batch)
            return jax.tree.map(lambda x: x[:size], output._replace(logits=None))

        jitted = jax.jit(predict, out_shardings=sharding.replicated(self._mesh))
        compiled = jitted.lower(variables, shared).compile()
        processes.wait_for_all("compiled")  # before devices wait for each other
        return compiled


def benchmark_name(run: Run, stage: Stage) -> str:
    """Return the test split's name, with the stage's unless it is the last.

    An earlier stage answers another question (a tokenizer sees the true mesh), so that
    its numbers must not be taken for the model's.
    """
    name = f"{configs.evaluated_on(run.config, stage.name)}_test"
    last = run.family.stages(run.config)[-1]
    return name if stage.name == last.name else f"{name}_{stage.name}"


def _path(workdir: Path, step: int, name: str) -> Path:
    return Path(workdir) / "eval" / str(step) / f"{name}.json"


def _save(path: Path, image: np.ndarray) -> None:
    import cv2

    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise OSError(f"{path} could not be encoded as PNG.")
    atomic_files.write_bytes(path, data.tobytes())


def usage_panel(variables: Any, size: int = 8) -> np.ndarray | None:
    """Draw how often each code was chosen (EMA); None without a codebook.

    One square a code, in rows; codes that are never chosen are red.
    """
    counts = codebook_curves.leaf(variables, "ema_count")
    if counts is None:
        return None
    columns = int(np.ceil(np.sqrt(len(counts) * 2)))
    rows = -(-len(counts) // columns)
    share = np.log1p(counts / max(counts.mean(), 1e-9)) / np.log(5.0)
    grey = (40 + 215 * np.clip(share, 0, 1)).astype(np.uint8)
    color = np.repeat(grey[:, None], 3, axis=1)
    color[counts < 1e-3 * max(counts.mean(), 1e-9)] = (200, 40, 40)
    grid = np.full((rows * columns, 3), 255, np.uint8)
    grid[: len(counts)] = color
    picture = grid.reshape(rows, columns, 3).repeat(size, 0).repeat(size, 1)
    picture[::size] = picture[:, ::size] = 255
    return picture


def final_table(run: Run) -> str:
    """Format the errors of every stage and the mean hand, from the last steps."""
    rows: list[tuple[str, dict[str, Any]]] = []
    saved = stage_steps(run.workdir)
    for stage in run.family.stages(run.config):
        last = max(saved.get(stage.name, []), default=0)
        path = _path(run.workdir, last, benchmark_name(run, stage))
        if not path.exists():
            continue
        kinds = {"metrics": dict, "baseline": (dict, type(None))}
        report = json_files.read(path, kinds, "Evaluate the run again.")
        if not rows and report["baseline"]:
            kinds = {"mean_hand": dict}
            known = json_files.checked(report["baseline"], path, kinds)
            rows.append(("mean hand", known["mean_hand"]))
        rows.append((stage.name, report["metrics"]))
    width = max([len(name) for name, _ in rows], default=0)
    lines = [" " * width + "".join(f"{name:>14}" for name in SHOWN)]
    for name, metrics in rows:
        cells = [_cell(metrics.get(key)) for key in SHOWN]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"
