"""Report and tabulate the errors of a trained model on a split of its data."""

import time
from pathlib import Path
from typing import Any

from handjax.config.schema import LABELLED_POSES, evaluated_on
from handjax.distributed import split_shares
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.errors import UserError
from handjax.evaluation import mean_hand
from handjax.evaluation.mean_hand import MeanHand
from handjax.evaluation.score_files import tta_line
from handjax.evaluation.split_errors import StageSums, measure
from handjax.evaluation.trained_model import Trained
from handjax.family.stage import Stage
from handjax.inference import tta
from handjax.io import atomic_files
from handjax.metrics.mesh_errors import PROTOCOLS


def make(
    found: Trained,
    *,
    split: str = "test",
    procrustes: str = "freihand",
    tta_mode: str | None = None,
    share: ProcessShare = WHOLE,
    skip_nonfinite: bool = False,
) -> tuple[dict[str, Any] | None, Path]:
    """Evaluate a trained model and write `eval/<step>/<benchmark>.json`.

    Args:
        found: Model and data of the workdir.
        split: Split of its data.
        procrustes: A key of `mesh_errors.PROTOCOLS`.
        tta_mode: A key of `tta.MODES`; None predicts once.
        share: Share that this process evaluates.
        skip_nonfinite: Whether hands with nan or infinite values are left out and
            counted.

    Returns:
        The report and its path; no report while shares of other processes are missing.

    Raises:
        UserError: Test-time augmentation was asked of a stage without pictures, or
            examples are missing or counted twice.
        HandjaxError: Names a hand with nan or infinite values.
    """
    config, stage = found.config, found.stage
    if tta_mode and not stage.needs_image:
        raise UserError(
            f"--tta={tta_mode}: stage {stage.name!r} sees no picture that could be "
            "turned; leave --tta out, or evaluate a stage that does."
        )
    augmentation = tta.describe(tta_mode)
    if augmentation:
        print(
            f"{tta_line(augmentation)}; progress after every "
            f"{config.eval.batch_size} hands (config.eval.batch_size)",
            flush=True,
        )
    mean = mean_hand.fit(found.data.train_split(stage))
    where: dict[str, Any] = dict(
        split=split, share=share, procrustes=procrustes, skip_nonfinite=skip_nonfinite
    )
    sums = {
        stage.name: _measured(
            found,
            stage,
            mean_hand=mean,
            tta_mode=tta_mode,
            on_batch=Progress(),
            generated=config.stages[stage.name].data == LABELLED_POSES,
            **where,
        )
    }
    # The reconstruction of the true mesh is the floor of the stages that see a picture.
    floors = [s for s in found.stages if stage.needs_image and not s.needs_image]
    sums |= {floor.name: _measured(found, floor, **where) for floor in floors}
    benchmark = benchmark_name(found, split, procrustes, tta_mode)
    folder = found.workdir / "eval" / str(found.step)
    path = folder / f"{benchmark}.json"
    about = found.cache_key(split=split, procrustes=procrustes, tta=tta_mode)
    if not _merged(sums, share, folder, benchmark, about):
        return None, path
    for each in (stage, *floors):
        count = found.data.evaluation_count(each, split)
        split_shares.check_whole(sums[each.name].indices, count)
    result = sums[stage.name].report()
    if stage.needs_image:
        result["floor"] = {s.name: sums[s.name].report()["metrics"] for s in floors}
    report = {
        "benchmark": benchmark,
        "protocol": PROTOCOLS[procrustes],
        "tta": augmentation,
        "definitions": _definitions(config, mean),
        **found.provenance(),
        **result,
    }
    atomic_files.write_json(path, report)
    return report, path


def _measured(
    found: Trained, stage: Stage, *, split: str, share: ProcessShare, **options: Any
) -> StageSums:
    batches = found.data.evaluation(stage, split=split, share=share)
    return measure(
        found.model,
        found.variables,
        stage,
        batches,
        root=found.root,
        split=split,
        **options,
    )


def _merged(
    measured: dict[str, StageSums],
    share: ProcessShare,
    folder: Path,
    name: str,
    about: dict[str, Any],
) -> bool:
    """Add the sums of the other processes; return whether all exist."""
    if share.count == 1:
        return True
    state = split_shares.packed({k: sums.state() for k, sums in measured.items()})
    parts = split_shares.gather_parts(folder, name, share, state, about)
    for i, part in enumerate(parts or ()):
        if i != share.index:
            for k, sums in measured.items():
                sums.merge(split_shares.unpacked(part, k))
    return parts is not None


def benchmark_name(
    found: Trained, split: str, procrustes: str, tta_mode: str | None
) -> str:
    """Return a name of data set and split, with stage, protocol and TTA."""
    name = found.stage.name
    parts = [evaluated_on(found.config, name), split]
    if name != found.stages[-1].name:
        parts.append(name)
    if procrustes != "freihand":
        parts.append(procrustes)
    if tta_mode:
        parts.append(f"tta_{tta_mode}")
    return "_".join(parts)


def _definitions(config: Any, mean: MeanHand | None) -> dict[str, str]:
    """Explain the numbers, for the file that holds them."""
    used = f"the first {mean.count} training hands" if mean else "no training hand"
    return {
        "pa": "joints and vertices aligned separately by a similarity transform",
        "root": f"mpjpe and mpvpe: after subtracting the {config.data.root} joint",
        "f": "aligned vertices, nearest neighbours both ways, under 5 and 15 mm",
        "generation": "Hausdorff in metres and squared Chamfer in square metres (sum "
        "of both directions), of vertices after subtracting the root",
        "auc": "aligned points, 0 to 50 mm, 100 thresholds, trapezoids",
        "mean_hand": f"of {used}: root-relative average (mpjpe, mpvpe), generalised "
        "Procrustes mean (others)",
        "floor": "reconstruction of the true mesh by the stages that see no image",
        "confidence": "mean errors of the tenth of the hands that the model is surest "
        "of (HandOutput.confidence), and of the tenth that it is least sure of",
    }


class Progress:
    """Prints a line every few seconds, so that a long evaluation shows it is alive."""

    def __init__(self, every_s: float = 5.0):
        self._every_s = every_s
        self._start = self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        """Print a line, if it is time."""
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            rate = count / (now - self._start)
            print(f"{count} hands, {rate:.3g} a second", flush=True)


def table(report: dict[str, Any]) -> str:
    """Format model, floor and baseline under each other."""
    rows = [("mean hand", m) for m in report["baseline"].values()]
    rows.append((f"{report['family']} {report['stage']}", report["metrics"]))
    for tenth, metrics in (report.get("confidence") or {}).items():
        rows.append((f"{tenth.replace('_', ' ')} tenth", metrics))
    rows += [(f"floor: {k}", m) for k, m in report.get("floor", {}).items()]
    width = max(len(name) for name, _ in rows) + 2
    names = list(report["metrics"])
    lines = [
        f"{report['benchmark']}: {report['count']} hands, {report['protocol']}",
        *([tta_line(report["tta"])] if report["tta"] else []),
        " " * width + "".join(f"{name:>14}" for name in names),
    ]
    for name, metrics in rows:
        cells = (_cell(key, metrics.get(key)) for key in names)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    lines += [
        f"generated hands, {key}: {value['mean']:.4g} +- {value['std']:.4g}"
        for key, value in report.get("generation", {}).items()
        if value
    ]
    if report.get("nonfinite"):
        lines.append(f"left out with nan or infinite values: {report['nonfinite']}")
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name.endswith("_mm") else f"{value:.3f}"
