"""When a stage stops early: after so many evaluations without a better one."""

import math
from typing import Any

from handjax.errors import UserError

METRIC = "pa_mpjpe_mm"
"""What has to fall, on the test split."""


class Patience:
    """The best evaluation of a stage so far, and how many there were since.

    Args:
        limit: `config.stages.<name>.patience`; 0 never stops.
        saved: what `state` gave when the stage was left, {} at its beginning.
    """

    def __init__(self, limit: int, saved: dict[str, Any]):
        self.limit = limit
        self.best: float | None = saved.get("best")
        self.step: int = saved.get("step", 0)
        self.since: int = saved.get("since", 0)

    def see(self, step: int, scores: dict[str, Any]) -> bool:
        """Count an evaluation; True if it is the best so far.

        Raises:
            UserError: if the evaluation does not have the number.
        """
        if not self.limit:
            return False
        value = scores.get(f"eval_{METRIC}")
        if value is None:
            raise UserError(
                f"patience={self.limit} needs {METRIC}, which the evaluation at step "
                f"{step} does not have (are there 3-D joints in the test split?). Set "
                "patience=0 to train for all steps."
            )
        if math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.step, self.since = float(value), step, 0
            return True
        self.since += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the stage is to stop."""
        return 0 < self.limit <= self.since

    @property
    def reason(self) -> str:
        """Why it stopped."""
        if self.best is None:
            return f"{METRIC} was not finite in {self.since} evaluations"
        return (
            f"{self.since} evaluations in a row were not below the {METRIC} "
            f"{self.best:.2f} of step {self.step}"
        )

    def state(self) -> dict[str, Any]:
        """Return the arguments of `__init__` as JSON, which keeps numbers exactly."""
        return {"best": self.best, "step": self.step, "since": self.since}
