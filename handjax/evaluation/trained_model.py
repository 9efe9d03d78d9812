"""Load a trained model with the data that it is evaluated on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from handjax import models
from handjax.checkpoints.workdir import load_for_inference
from handjax.config import files
from handjax.data import run_data
from handjax.data.run_data import OpenData
from handjax.family.stage import Stage
from handjax.mano import model_files


class Trained(NamedTuple):
    """A model and its data, ready to be evaluated."""

    config: Any
    """Config of the run, with the changes of the command line."""
    model: Any
    variables: Any
    stage: Stage
    stages: Sequence[Stage]
    """All stages of the family, in order."""
    step: int
    data: OpenData
    root: int
    """Joint that 3-D positions are relative to."""
    workdir: Path
    changed: dict[str, Any]
    """Keys of the config that differ from the run's, with their values."""

    def provenance(self) -> dict[str, Any]:
        """Identify the model in every report."""
        return {
            "family": self.config.family,
            "stage": self.stage.name,
            "step": self.step,
            "changed": self.changed,
        }

    def cache_key(self, **options: Any) -> dict[str, Any]:
        """Return all that decides the numbers of an evaluation.

        `split_shares.gather_parts` combines only parts with the same key.
        """
        steps = self.workdir / "checkpoints" / self.stage.name / str(self.step)
        written = steps.stat().st_mtime_ns if steps.exists() else 0
        return {**self.provenance(), "written": written, **options}

    def describe(self) -> str:
        """Return one line: which model, which data."""
        return (
            f"{self.config.family}, stage {self.stage.name}, step {self.step}; data: "
            f"{self.data.describe()}"
        )


def load(
    workdir: str | Path,
    stage: str | None,
    step: int | None,
    overrides: Sequence[tuple[str, Any]] = (),
) -> Trained:
    """Read a workdir and open its data.

    Args:
        workdir: Directory of a run.
        stage: None for the last one that has a checkpoint.
        step: None for the newest one.
        overrides: Keys of the config and their values, or texts of them.

    Raises:
        MissingFileError: There is no such checkpoint, or no data.
        UserError: The config or its data are not valid.
    """
    config, model, variables, name, step = load_for_inference(
        workdir,
        stage,
        step,
        change=lambda config: files.override(config, overrides),
    )
    stages = models.load(config.family).stages(config)
    hand_file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    return Trained(
        config=config,
        model=model,
        variables=variables,
        stage=next(s for s in stages if s.name == name),
        stages=stages,
        step=step,
        data=run_data.open_data(config, hand_file),
        root=hand_file.skeleton.roots[config.data.root],
        workdir=Path(workdir),
        changed=dict(overrides),
    )
