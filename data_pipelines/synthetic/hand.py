"""Pose the built-in hand for the renderer: a finer mesh with a forearm, in numpy.

Two meshes move together. The annotated one is the 778-vertex open hand of
`handjax.mano.model_files`; the drawn one has more vertices, the annotated among them,
and a forearm. Rest frame of a right hand: fingers along -x, back of the
hand +y, thumb side +z. Angles are (flexion, abduction, twist) of joints 1..15, radians.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handjax.mano import model_files, numpy_skinning

ASSETS = Path(__file__).parent / "assets"
FOREARM_LENGTH = 0.5
"""Metres from the wrist: past the edge of the picture from every camera."""
_RING_STEP = 0.015
_ELBOW_WIDENING = 0.25
"""Relative growth of the forearm's section from its cut to `FOREARM_LENGTH`."""


class RenderHand(NamedTuple):
    """The annotated model and the drawn mesh, read once."""

    file: model_files.ManoFile
    joint_regressor: Float[np.ndarray, "21 778"]
    axes: Float[np.ndarray, "15 3 3"]
    """Unit axes of flexion, abduction and twist of each joint."""
    limits: Float[np.ndarray, "15 3 2"]
    """Lowest and highest angle, radians."""
    v_template: Float[np.ndarray, "vertex 3"]
    shapedirs: Float[np.ndarray, "vertex 3 10"]
    posedirs: Float[np.ndarray, "hand_coordinate 135"]
    """Pose correctives of the first `num_hand` vertices, flattened."""
    weights: Float[np.ndarray, "vertex 16"]
    faces: Int[np.ndarray, "face 3"]
    nail: Float[np.ndarray, "vertex"]
    num_hand: int
    """Drawn vertices before the forearm."""
    ring_faces: int
    """The last faces, those around the forearm's far end."""
    hand_subset: Int[np.ndarray, "778"]
    """Drawn vertex of each annotated vertex."""
    rest_joints: Float[np.ndarray, "16 3"]
    """Joints of the mean shape in the rest pose."""


class PosedHand(NamedTuple):
    """One hand in the camera's axes with the wrist joint at the origin."""

    vertices: Float[np.ndarray, "778 3"]
    joints3d: Float[np.ndarray, "21 3"]
    drawn: Float[np.ndarray, "vertex 3"]
    """Vertices of the drawn mesh."""
    rest: Float[np.ndarray, "vertex 3"]
    """The same with the fingers posed but neither bent at the wrist nor turned."""
    wrist_rest: Float[np.ndarray, "3"]
    """Rest position of the wrist: `transl` is the wrist's position minus this."""


@functools.cache
def load() -> RenderHand:
    """Read the assets (once per process)."""
    file = model_files.load("open")
    with np.load(model_files.OPEN_HAND) as model:
        axes, limits = model["axes"].astype(float), np.radians(model["limits_deg"])
    with np.load(ASSETS / "open_hand_render.npz") as arrays:
        drawn = {key: arrays[key] for key in arrays.files}
    rest_joints = file.J_regressor @ file.v_template
    num_hand = int(drawn["nh"])
    posedirs = drawn["posedirs"][:num_hand].reshape(num_hand * 3, 135)
    return RenderHand(
        file=file,
        joint_regressor=model_files.joint_regressor(file),
        axes=axes,
        limits=limits.astype(float),
        posedirs=posedirs.astype(np.float32),
        num_hand=num_hand,
        hand_subset=drawn["hand_subset"].astype(np.int64),
        rest_joints=rest_joints,
        **_with_long_forearm(drawn, rest_joints[0]),
    )


def _with_long_forearm(
    drawn: dict[str, np.ndarray], wrist: np.ndarray
) -> dict[str, Any]:
    """Extrude the open end of the drawn mesh, so that no picture shows it."""
    vertices, faces = drawn["v_template"].astype(float), drawn["f"].astype(np.int64)
    shapedirs, weights = (
        drawn["shapedirs"].astype(float),
        drawn["weights"].astype(float),
    )
    loop = _open_end(faces, vertices)
    centre = vertices[loop].mean(0)
    length = np.linalg.norm(centre - wrist)
    axis = (centre - wrist) / length
    count = max(1, int(np.ceil((FOREARM_LENGTH - length) / _RING_STEP)))
    rings, strips, last = [], [], loop
    for ring in range(1, count + 1):
        wide = 1 + _ELBOW_WIDENING * np.sin(np.pi / 2 * ring / count)
        rings.append(
            centre + (vertices[loop] - centre) * wide + axis * ring * _RING_STEP
        )
        new = len(vertices) + (ring - 1) * len(loop) + np.arange(len(loop))
        strips.append(_strip(last, new))
        last = new
    return {
        "v_template": np.concatenate([vertices, *rings]),
        "shapedirs": np.concatenate([shapedirs, *[shapedirs[loop]] * count]),
        "weights": np.concatenate([weights, *[weights[loop]] * count]),
        "nail": np.concatenate(
            [drawn["nail"].astype(float), np.zeros(count * len(loop))]
        ),
        "faces": np.concatenate([faces, *strips]),
        "ring_faces": 2 * len(loop),
    }


def _strip(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return two triangles between each pair of neighbours of two rings."""
    lower_next, upper_next = np.roll(lower, -1), np.roll(upper, -1)
    return np.concatenate(
        [
            np.stack([lower_next, lower, upper], -1),
            np.stack([lower_next, upper, upper_next], -1),
        ]
    )


def _open_end(faces: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Return the boundary loop farthest along +x, in the order of its faces."""
    edges = {(int(f[i]), int(f[i - 2])) for f in faces for i in range(3)}
    follow = {a: b for a, b in sorted(edges) if (b, a) not in edges}
    loops = []
    while follow:
        loop = [next(iter(follow))]
        while (after := follow.pop(loop[-1])) != loop[0]:
            loop.append(after)
        loops.append(np.array(loop))
    return max(loops, key=lambda loop: vertices[loop, 0].mean())


def joint_rotations(
    hand: RenderHand, angles: Float[np.ndarray, "15 3"]
) -> Float[np.ndarray, "15 3 3"]:
    """Return local rotations of finger joints: flexion after abduction after twist."""
    turns = numpy_skinning.axis_angle_to_matrix(angles[..., None] * hand.axes)
    return turns[:, 0] @ turns[:, 1] @ turns[:, 2]


def pose(
    hand: RenderHand,
    angles: Float[np.ndarray, "15 3"],
    betas: Float[np.ndarray, "10"],
    root: Float[np.ndarray, "3 3"],
    wrist_bend: Float[np.ndarray, "3 3"],
) -> PosedHand:
    """Pose both meshes.

    Args:
        hand: Result of `load`.
        angles: Joint angles, radians.
        betas: Shape coefficients.
        root: Rotation from the rest frame to the camera's axes.
        wrist_bend: Rotation of the forearm against the hand, in the rest frame. It
            does not move the annotated mesh, whose stub belongs to the hand.
    """
    rotations = np.concatenate([np.eye(3)[None], joint_rotations(hand, angles)])
    features = (rotations[1:] - np.eye(3)).reshape(135)
    shaped = hand.file.v_template + hand.file.shapedirs @ betas
    joints = hand.file.J_regressor @ shaped
    turn, shift = numpy_skinning.joint_transforms(rotations, joints)
    posed = numpy_skinning.skin(
        shaped + hand.file.posedirs @ features, hand.file.weights, turn, shift
    )
    drawn = hand.v_template + hand.shapedirs @ betas
    offset = (hand.posedirs @ features.astype(np.float32)).reshape(-1, 3)
    drawn[: hand.num_hand] += offset
    rest = numpy_skinning.skin(drawn, hand.weights, turn, shift) - joints[0]
    vertices = (posed - joints[0]) @ root.T
    return PosedHand(
        vertices=vertices,
        joints3d=hand.joint_regressor @ vertices,
        drawn=bend(hand, rest, rest, wrist_bend) @ root.T,
        rest=rest,
        wrist_rest=joints[0],
    )


def bend(
    hand: RenderHand,
    rest: Float[np.ndarray, "vertex 3"],
    points: Float[np.ndarray, "point 3"],
    wrist_bend: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "point 3"]:
    """Turn the forearm part of `points` about the end of the annotated mesh.

    Args:
        hand: The model.
        rest: `PosedHand.rest`, which says where the annotated mesh ends.
        points: Points of the arm or of a sleeve around it, same frame as `rest`.
        wrist_bend: Rotation of the forearm.
    """
    start = rest[hand.hand_subset, 0].max() + 0.001
    forearm = rest[hand.num_hand :]
    near = forearm[np.abs(forearm[:, 0] - start) < 0.02]
    pivot = np.array([start + 0.01, *near[:, 1:].mean(0)])
    ramp = np.clip((points[:, :1] - start) / 0.04, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return points + ramp * ((points - pivot) @ wrist_bend.T + pivot - points)
