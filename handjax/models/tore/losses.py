"""Losses and predictions of TORE's stage."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from handjax.geometry import camera
from handjax.losses import elementwise
from handjax.models.tore.model import Model, Prediction
from handjax.nn import token_pruner
from handjax.types import (
    Batch,
    HandOutput,
    Variables,
)


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the terms to be weighted and summed (TORE Eq. total loss).

    The hosts' releases have further ones: 2-D of the joints' tokens, and FastMETRO
    lengths of edges and their angles to the true normals. All are means over examples,
    points and coordinates, what is not known counting as zero; 2-D is in crop
    coordinates from -1 to 1. "pruning" is there if there is a pruner; its weight has a
    ramp in the configs, for at first the predicted camera sees the mesh nowhere.
    """
    found, updates = model.apply(
        variables,
        batch.image,
        train=True,
        method="predict",
        mutable=["batch_stats"],
        rngs=rngs,
    )
    mesh = variables["constants"]["mesh"]
    terms = {
        **_joint_terms(model, found, batch),
        "vertices": vertex_loss(model, found, batch, mesh),
        **_surface_terms(found, batch, variables["constants"]["faces"]),
    }
    if found.clusters is not None:
        seen = camera.weak_project(batch.vertices, found.output.cam)
        mask = token_pruner.covered(seen, found.clusters.shape[2:])
        terms["pruning"] = token_pruner.supervision(
            found.clusters,
            mask,
            batch.vertices_valid,
            reduction=model.pruning_reduction,
            per_device=model.per_device,
        )
    error = elementwise.mean_distance(
        found.output.vertices,
        batch.vertices,
        example_valid=jnp.asarray(batch.vertices_valid),
    )
    return terms, {"mm": 1000 * error}, dict(updates)


def _joint_terms(
    model: Model, found: Prediction, batch: Batch
) -> dict[str, Float[Array, ""]]:
    """Compute the terms of the tokens' and mesh's joints, in 3-D and in the crop.

    In 3-D those of the tokens (TORE Eq. joint loss) and of the mesh
    (TORE Eq. regressed joint loss); by weak perspective those of the mesh
    (TORE Eq. projection loss), and those of the tokens, which the paper's formula does
    not have. In 2-D joints count by their confidence, as released. The camera is that
    of the code, s (X + t); the paper prints s X + t.
    """
    known = jnp.asarray(batch.known_joints3d)
    seen = jnp.asarray(batch.joints2d_weights)
    size_px = jnp.asarray(batch.image).shape[1]
    target2d = 2 * jnp.asarray(batch.joints2d) / size_px - 1
    terms = {}
    for suffix, joints in (("", found.joints3d), ("_mesh", found.output.joints3d)):
        in_crop = camera.weak_project(joints, found.output.cam)
        for name, ours, target, valid in (
            ("joints3d", joints, jnp.asarray(batch.joints3d), known),
            ("joints2d", in_crop, target2d, seen),
        ):
            difference = jnp.abs(ours - target)
            if model.keypoint_loss == "mse":
                difference = jnp.square(difference)
            terms[name + suffix] = _mean(difference, valid)
    return terms


def vertex_loss(
    model: Model, found: Prediction, batch: Batch, mesh: dict[str, Any]
) -> Float[Array, ""]:
    """Compute the vertices' L1, averaged over the levels (TORE Eq. vertex loss).

    The paper's formula is their sum; TORE's and the hosts' code weighs each of three
    (a body's) by 1/3 and each of two (a hand's) by 1/2.
    """
    target, total = jnp.asarray(batch.vertices), jnp.zeros(())
    for level, vertices in zip(
        range(model.coarse_level, -1, -1), found.levels, strict=True
    ):
        true = target[:, mesh[f"kept{level}"]] if level else target
        valid = jnp.broadcast_to(
            jnp.asarray(batch.vertices_valid)[:, None], true.shape[:2]
        )
        total = total + _mean(jnp.abs(vertices - true), valid)
    return total / len(found.levels)


def _surface_terms(
    found: Prediction, batch: Batch, faces: Any
) -> dict[str, Float[Array, ""]]:
    valid = jnp.broadcast_to(
        jnp.asarray(batch.vertices_valid)[:, None], (len(batch.vertices), len(faces))
    )
    meshes = found.output.vertices, batch.vertices, faces
    return {
        "edges": _mean(elementwise.edge_lengths(*meshes), valid),
        "normals": _mean(elementwise.edge_normals(*meshes), valid),
    }


def _mean(
    errors: Float[Array, "batch point _"],
    weights: Bool[Array, "batch point"] | Float[Array, "batch point"],
) -> Float[Array, ""]:
    weights = weights[..., None]
    return jnp.mean(jnp.where(weights > 0, errors * weights, 0.0))


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image."""
    return model.apply(variables, batch.image)
