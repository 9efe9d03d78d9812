"""What a model keeps of the hand model it is trained with."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handjax.errors import UserError
from handjax.geometry.skeleton import HAND, Skeleton, of_body
from handjax.mano import model_files
from handjax.types import AnyArray, Variables


class HandConstants(NamedTuple):
    """What a model keeps of the hand model it was trained with.

    The fields are those of `mano.HandModel`, so that a family that poses hands stores
    them all (`arrays`) as "constants/hand" and makes `HandModel(**constants["hand"])`
    of them.
    """

    v_template: Float[np.ndarray, "vertex 3"]
    """Flat rest mesh, metres."""
    shapedirs: Float[np.ndarray, "vertex 3 beta"]
    posedirs: Float[np.ndarray, "vertex 3 corrective"]
    J_regressor: Float[np.ndarray, "bone vertex"]
    weights: Float[np.ndarray, "vertex bone"]
    joint_regressor: Float[np.ndarray, "joint vertex"]
    """`joints3d = joint_regressor @ vertices`, in `skeleton.JOINTS` order."""
    hands_mean: Float[np.ndarray, "local 3"]
    hands_components: Float[np.ndarray, "angle angle"]
    faces: Int[np.ndarray, "face 3"]
    parents: Int[np.ndarray, "bone"] | None = None
    """The tree of a body; None for a hand."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields that are set, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}

    def require_hand(self, family: str) -> None:
        """Refuse a body, for families whose layers are made for a hand's counts.

        Raises:
            UserError: It is one.
        """
        if self.parents is not None:
            raise UserError(
                f"{family} is a network for hands, of 778 vertices and 21 joints; "
                f"config.hand.source is a body model of {len(self.v_template)} and "
                f"{len(self.joint_regressor)}. Use a family that takes its counts from "
                "the model, as Hamba does."
            )


def hand_constants(file: model_files.ManoFile) -> HandConstants:
    """Return the constants of a hand model file, float32."""
    return HandConstants(
        v_template=np.asarray(file.v_template, np.float32),
        shapedirs=np.asarray(file.shapedirs, np.float32),
        posedirs=np.asarray(file.posedirs, np.float32),
        J_regressor=np.asarray(file.J_regressor, np.float32),
        weights=np.asarray(file.weights, np.float32),
        joint_regressor=np.asarray(model_files.joint_regressor(file), np.float32),
        hands_mean=np.asarray(file.hands_mean.reshape(-1, 3), np.float32),
        hands_components=np.asarray(file.hands_components, np.float32),
        faces=np.asarray(file.faces, np.int32),
        parents=None if file.is_hand else np.asarray(file.parents, np.int32),
    )


def skeleton_of(variables: Variables) -> Skeleton:
    """Return the joints of a trained model, as its "constants" define them.

    All but the names of a body's end points, which its file has: they are numbered.
    """
    hand = variables.get("constants", {}).get("hand", {})
    if "parents" not in hand:
        return HAND
    parents = np.asarray(hand["parents"]).tolist()
    ends = np.asarray(hand["joint_regressor"])[len(parents) :].argmax(axis=1)
    bones = np.asarray(hand["weights"])[ends].argmax(axis=1).tolist()
    return of_body(parents, [(f"end{i}", bone) for i, bone in enumerate(bones)])


def check_root(config: Any) -> None:
    """Refuse predictions and annotations that are relative to different joints.

    Args:
        config: Of the run; `config.model.root` is the joint of its predictions.

    Raises:
        UserError: `config.model.root` is not the root of the data.
    """
    root = config.model.root
    if root != config.data.root:
        raise UserError(
            f"config.model.root={root!r} is not config.data.root="
            f"{config.data.root!r}; predictions and annotations have to be relative to "
            "the same joint."
        )


def parameters_by_part(
    variables: Variables, parts: Mapping[str, str]
) -> list[tuple[str, int]]:
    """Count parameters, and the numbers of a tokenizer's codebook, by part.

    Args:
        variables: Of a model.
        parts: Beginning of a parameter's path -> part; the first that fits counts. The
            codebook's path is "codebook".

    Returns:
        Rows (part, number), sorted.
    """
    from flax.traverse_util import flatten_dict

    leaves = flatten_dict(variables["params"], sep="/")
    if "codebook" in variables:
        leaves["codebook"] = variables["codebook"]["tokenizer"]["vq"]["embedding"]
    rows: dict[str, int] = {}
    for path, leaf in leaves.items():
        part = next(part for begin, part in parts.items() if path.startswith(begin))
        rows[part] = rows.get(part, 0) + math.prod(leaf.shape)
    return sorted(rows.items())


def joints_from_vertices(
    joint_regressor: Float[AnyArray, "joint vertex"],
    vertices: Float[AnyArray, "batch vertex 3"],
) -> Float[AnyArray, "batch joint 3"]:
    """Compute the joints of meshes, in float32 at full precision."""
    import jax
    import jax.numpy as jnp

    return jnp.einsum(
        "jv,bvx->bjx",
        jnp.asarray(joint_regressor, jnp.float32),
        jnp.asarray(vertices, jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
