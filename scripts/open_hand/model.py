"""Assembles the 778-vertex model and the render mesh of the open hand."""

import correctives
import numpy as np
import regressor
from decimate import NAIL_WEIGHT, Decimator
from named_poses import LIMITS_DEG, pose
from rest import joint_axes
from skinning import FINGERS, JOINT_NAMES, PARENTS, angles_to_rotations, skin, unit
from topology import boundary_loop, vertex_normals

NUM_VERTICES = 778
NUM_RIM = 16
MAX_INFLUENCES = 4
_FOLDED = (85, 105, 72, 0)
_STRAIGHT = (0, 2, 1, 0)
DECIMATION_POSES = (
    pose(*[_STRAIGHT] * 4, ((0, 0, 0), 0, 0)),
    pose(
        (18, 28, 16, 0),
        (22, 32, 18),
        (26, 34, 20, 0),
        (30, 36, 20, 0),
        ((5, 10, 5), 10, 15),
    ),
    pose(*[_FOLDED] * 4, ((22, 25, 18), 32, 52)),
    pose(_STRAIGHT, *[_FOLDED] * 3, ((22, 25, 18), 32, 52)),
    pose(
        (42, 48, 30, 0),
        (22, 28, 15),
        (16, 22, 12, 0),
        (12, 16, 10, 0),
        ((12, 36, 25), 15, 20),
    ),
    pose(
        (-6, 0, 0, 14),
        (-6, 0, 0, 3),
        (-6, 0, 0, -9),
        (-6, 0, 0, -20),
        ((-20, 12, -5), -5, -12),
    ),
    pose(*[_FOLDED] * 4, ((-20, -5, -5), -5, -12)),
    pose(
        (45, 45, 25, 4),
        (48, 46, 25),
        (50, 46, 25, -2),
        (54, 46, 25, -6),
        ((10, 35, 20), 12, 18),
    ),
)
"""Poses whose surface the decimation preserves. Apart from the named poses, so that
mending one of those does not change the mesh. The fingers fold as far as they can."""


def _few_influences(weights):
    """At most `MAX_INFLUENCES` weights a row, none tiny, summing to one."""
    order = np.argsort(-weights, axis=1)
    kept = np.zeros_like(weights)
    rows = np.arange(len(weights))[:, None]
    top = order[:, :MAX_INFLUENCES]
    kept[rows, top] = weights[rows, top]
    kept[kept < 1e-3] = 0
    return kept / kept.sum(1, keepdims=True)


def _decimate(vertices, joints, weights, source):
    hand = slice(source.num_hand)
    axes = joint_axes(vertices, joints, weights, source.nail, source.faces, source.tips)
    posed = [
        skin(
            vertices[hand],
            joints,
            weights[hand],
            angles_to_rotations(angles, axes),
        )
        for angles in DECIMATION_POSES
    ]
    decimator = Decimator(
        100 * np.array(posed),
        source.hand_faces,
        keep=source.tips,
        importance=1 - NAIL_WEIGHT * source.nail[hand],
    )
    return decimator.run(NUM_VERTICES, NUM_RIM)


def _pads(vertices, joints, weights, nail, faces, axes, tips):
    """The most palmar vertex on the outer half of each last phalanx."""
    normals, pads = vertex_normals(vertices, faces), []
    for f in range(5):
        last = 3 + 3 * f
        on_nail = (nail * (weights[:, last] > 0.5))[:, None]
        back = axes[last - 1, 1] * np.sign(
            axes[last - 1, 1] @ (normals * on_nail).sum(0)
        )
        along = (vertices - joints[last]) @ unit(axes[last - 1, 2])
        length = (vertices[tips[f]] - joints[last]) @ unit(axes[last - 1, 2])
        outer = (weights[:, last] > 0.8) & (along > 0.45 * length)
        outer &= along < 0.85 * length
        pads.append(np.argmax(np.where(outer, -normals @ back, -9)))
    return np.array(pads)


def assemble(source, mean, fields, names):
    """Build both models.

    Args:
        source: `source.Source`.
        mean: (n + 16, 3) flat rest points.
        fields: (10, n + 16, 3) what each beta adds.
        names: Of the betas.

    Returns:
        Dictionaries of arrays: the 778-vertex model, the render mesh.
    """
    num, hand = len(source.vertices), slice(source.num_hand)
    weights = _few_influences(source.weights)
    kept, faces = _decimate(mean[:num], mean[num:], weights, source)
    mean = mean - mean[kept].mean(0)
    fields = fields - fields[:, kept].mean(1, keepdims=True)
    vertices, joint_regressor = (
        mean[kept],
        regressor.fit(
            mean[kept],
            fields[:, kept],
            mean[num:],
            fields[:, num:],
            weights[kept],
            np.flatnonzero(np.isin(kept, source.wrist_ring)),
        ),
    )
    joints = joint_regressor @ vertices
    tips = np.array([np.flatnonzero(kept == tip)[0] for tip in source.tips])
    axes = joint_axes(
        mean[:num], joints, weights, source.nail, source.faces, source.tips
    )
    posedirs = correctives.fit(
        mean[hand], source.hand_faces, weights[hand], joints, axes
    ).astype(np.float16)
    shapedirs = fields[:, :num].transpose(1, 2, 0).astype(np.float32)
    variance = np.square(fields[:, kept]).sum((1, 2))
    template = mean[:num].astype(np.float32)
    model = {
        "v_template": template[kept],
        "f": faces.astype(np.int32),
        "shapedirs": shapedirs[kept],
        "posedirs": posedirs[kept],
        "weights": weights[kept].astype(np.float32),
        "J_regressor": joint_regressor.astype(np.float32),
        "kintree_table": np.array(
            [[2**32 - 1 if p < 0 else p for p in PARENTS], range(16)], np.int64
        ),
        "J": joints.astype(np.float32),
        "joint_names": np.array(JOINT_NAMES),
        "axes": axes.astype(np.float32),
        "limits_deg": LIMITS_DEG.astype(np.float32),
        "tips": tips.astype(np.int32),
        "pads": _pads(
            vertices, joints, weights[kept], source.nail[kept], faces, axes, tips
        ).astype(np.int32),
        "tip_names": np.array(FINGERS),
        "wrist_loop": boundary_loop(faces).astype(np.int32),
        "nail": source.nail[kept].astype(np.float32),
        "src_idx": kept.astype(np.int32),
        "beta_names": np.array(names),
        "explained": variance / variance.sum(),
    }
    render = {
        "v_template": template,
        "f": source.faces.astype(np.int32),
        "shapedirs": shapedirs,
        "posedirs": posedirs,
        "weights": weights.astype(np.float32),
        "nail": source.nail.astype(np.float32),
        "nh": np.int64(source.num_hand),
        "hand_subset": kept.astype(np.int32),
    }
    return model, render
