"""Where the parameters of a model are, as a table."""

from typing import Any

import jax
import numpy as np

from handjax.family.capabilities import CountsParts, Family
from handjax.family.stage import Stage
from handjax.training import optimizers, resume, step
from handjax.training.run import Run


def count(variables: Any) -> dict[str, int]:
    """Count the parameters of each part (the first name of their paths)."""
    parts: dict[str, int] = {}
    for path, leaf in step.flat(variables["params"]).items():
        part = path.split("/")[0]
        parts[part] = parts.get(part, 0) + int(np.prod(leaf.shape))
    return parts


def _finer(family: Family, variables: Any) -> list[tuple[str, int]]:
    """Count parts as the family's paper does, where the family says so."""
    if not isinstance(family, CountsParts):
        return []
    return list(family.parameter_table(variables))


def table(run: Run, stages: tuple[Stage, ...]) -> str:
    """Format parameters by part, and who trains them: "stage" or "stage/group".

    Raises:
        ValueError: if a stage or one of its groups has no parameter.
    """
    shapes = jax.eval_shape(lambda: resume.initial_variables(run))
    trained: dict[str, dict[str, None]] = {part: {} for part in count(shapes)}
    for stage in stages:
        chosen, _ = step.partition(shapes["params"], stage)
        groups = optimizers.labels(chosen, run.config.stages[stage.name].groups)
        for path, group in groups.items():
            name = stage.name if group == optimizers.REST else f"{stage.name}/{group}"
            trained[path.split("/")[0]][name] = None
    rows = [
        (part, number, ", ".join(trained[part]) or "never")
        for part, number in sorted(count(shapes).items())
    ]
    rows.append(("all parts", sum(n for _, n, _ in rows), ""))
    rows += [(f"  {part}", n, "") for part, n in _finer(run.family, shapes)]
    width = max(len(part) for part, _, _ in rows)
    lines = [f"{'part':<{width}}  {'parameters':>12}  trained in"]
    lines += [f"{part:<{width}}  {n:>12,}  {who}".rstrip() for part, n, who in rows]
    return "\n".join(lines)
