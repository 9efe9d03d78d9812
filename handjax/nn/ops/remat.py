"""What the backward pass finds stored, and what it computes again."""

from typing import Any

import flax.linen as nn
import jax

from handjax.errors import UserError

POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""Inside of a block: "nothing" stores least and computes all of it again, about a third
more work; "dots" stores the results of products with weights, which are most of the
work, and computes what is cheap again."""


def rematerialize(block: Any, policy: str, **options: Any) -> Any:
    """Rematerialize a block: recompute its activations in the backward pass.

    Args:
        block: Class of a module, or a function whose first argument is a module.
        policy: One of `POLICIES`.
        **options: Of `flax.linen.remat`.

    Raises:
        UserError: There is no such policy.
    """
    if policy not in POLICIES:
        raise UserError(
            f"config.model.remat_policy={policy!r} is not one of {', '.join(POLICIES)}."
        )
    return nn.remat(block, policy=POLICIES[policy], **options)
