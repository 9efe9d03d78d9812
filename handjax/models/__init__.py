"""Families of models: one paper, one file, found by listing this folder."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handjax import mano_files
from handjax.nn import backbones
from handjax.types import AnyArray, Variables


class HandConstants(NamedTuple):
    """What a model keeps of the hand model it was trained with.

    The fields are those of `mano.HandModel`, so that a family that poses hands stores
    them all as "constants/hand" and makes `HandModel(**constants["hand"])` of them.
    """

    v_template: Float[np.ndarray, "vertex 3"]
    """Flat rest mesh, metres."""
    shapedirs: Float[np.ndarray, "vertex 3 beta"]
    posedirs: Float[np.ndarray, "vertex 3 entry"]
    J_regressor: Float[np.ndarray, "bone vertex"]
    weights: Float[np.ndarray, "vertex bone"]
    joint_regressor: Float[np.ndarray, "joint vertex"]
    """`joints3d = joint_regressor @ vertices`, in `skeleton.JOINTS` order."""
    hands_mean: Float[np.ndarray, "finger_bone 3"]
    hands_components: Float[np.ndarray, "angle angle"]
    faces: Int[np.ndarray, "face 3"]


def hand_constants(file: mano_files.ManoFile) -> HandConstants:
    """Constants of a hand model file, float32."""
    return HandConstants(
        v_template=np.asarray(file.v_template, np.float32),
        shapedirs=np.asarray(file.shapedirs, np.float32),
        posedirs=np.asarray(file.posedirs, np.float32),
        J_regressor=np.asarray(file.J_regressor, np.float32),
        weights=np.asarray(file.weights, np.float32),
        joint_regressor=np.asarray(mano_files.joint_regressor(file), np.float32),
        hands_mean=np.asarray(file.hands_mean.reshape(-1, 3), np.float32),
        hands_components=np.asarray(file.hands_components, np.float32),
        faces=np.asarray(file.faces, np.int32),
    )


def names() -> tuple[str, ...]:
    """Names of all families."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(name: str) -> ModuleType:
    """Import a family: a module with `PAPER`, `Model` and `stages`."""
    if name not in names():
        raise ValueError(
            f"config.family={name!r} is not one of {', '.join(names())}. Add "
            f"handjax/models/{name}.py or fix the config."
        )
    return importlib.import_module(f"{__name__}.{name}")


def for_inference(model: Any, variables: Variables) -> tuple[Any, Variables]:
    """The model as it is served: branches of its backbone folded where it can.

    Answers stay the same to float rounding; the result cannot be trained.

    Args:
        model: A family's; with fields `backbone` and `fused` and a submodule
            `image_encoder` to have anything folded.
        variables: Of that model.
    """
    import jax

    if not hasattr(model, "fused") or model.fused:
        return model, variables
    part = {
        name: jax.device_get(tree["image_encoder"])
        for name, tree in variables.items()
        if "image_encoder" in tree
    }
    folded = backbones.fuse(model.backbone, part)
    if folded is None:
        return model, variables
    rest = {
        name: {key: tree[key] for key in tree if key != "image_encoder"}
        for name, tree in variables.items()
    }
    for name, tree in folded.items():
        rest[name] = {**rest[name], "image_encoder": jax.device_put(tree)}
    return model.clone(fused=True), rest


def joints_from_vertices(
    joint_regressor: Float[AnyArray, "21 778"], vertices: Float[AnyArray, "batch 778 3"]
) -> Float[AnyArray, "batch 21 3"]:
    """Joints of meshes, in float32 at full precision."""
    import jax
    import jax.numpy as jnp

    return jnp.einsum(
        "jv,bvx->bjx",
        jnp.asarray(joint_regressor, jnp.float32),
        jnp.asarray(vertices, jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
