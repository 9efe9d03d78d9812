"""From a feature to MANO parameters, and from those to a hand in the crop.

Shared by HaMeR and Hamba. Conventions: rotations are matrices; 2-D is in units of the
crop, x right, y down, (0, 0) its middle and +-0.5 its edges; 3-D is in metres, OpenCV
axes of the crop camera, where the hand model's own origin puts it. The camera `cam` is
(scale, x, y) of `camera.weak_perspective_to_translation`: HaMeR's camera has a focal
length of 5000 pixels for a crop of 256, so far away that perspective hardly shows. Only
their ratio counts, whatever the size of the picture.

Hand poses are absolute: the heads' numbers know no mean pose but the one in
`MeanParameters`, to which they are added.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.geometry import camera, rotations, skeleton
from handjax.mano.hand_model import HandModel
from handjax.nn.metaformer import torch_linear_init
from handjax.types import HandOutput

FOCAL_PX, CROP_PX = 5000, 256
FACING = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
"""From a hand model's axes to the camera's: fingers up, palm to the camera."""
UPRIGHT = np.diag([1.0, -1, -1])
"""From a body model's axes to the camera's: head up, chest to the camera."""
JOINTS = ("skeleton", "mesh")
"""Where joints come from. "skeleton": the joints that skinning turns about, and the
tips of the mesh, as smplx and so HaMeR; "mesh": all regressed from the posed mesh, as
the built-in data's. They differ by about 1 mm, in bent fingers by up to 6."""

_TIPS = np.flatnonzero(skeleton.MANO_TO_JOINTS >= len(skeleton.MANO_JOINTS))
_xavier = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
INITS = {"torch": torch_linear_init, "xavier": _xavier}
"""Initialisers of the heads. "torch": PyTorch's, what HaMeR's code takes unless it is
told otherwise; "xavier": HMR's, Xavier with a gain of 0.01, so that training begins at
the mean hand."""


def initialiser(name: str) -> Any:
    """Return the initialiser of that name, one of `INITS`.

    Raises:
        UserError: There is none of this name.
    """
    if name not in INITS:
        raise UserError(
            f"config.model.head_init={name!r} is not one of {', '.join(INITS)}."
        )
    return INITS[name]


class MeanParameters(NamedTuple):
    """What a head's numbers are added to; kept in the collection "constants"."""

    pose: Float[Array, "numbers"]
    """Six numbers (`rotations`, "columns") of each joint, the wrist first."""
    betas: Float[Array, "beta"]
    cam: Float[Array, "3"]


class ManoParameters(NamedTuple):
    """A hand as MANO's layer takes it, and the camera that sees it."""

    global_orient: Float[Array, "batch 1 3 3"]
    hand_pose: Float[Array, "batch joint 3 3"]
    """Local rotations of all joints but the wrist, absolute."""
    betas: Float[Array, "batch beta"]
    cam: Float[Array, "batch 3"]


class Posed(NamedTuple):
    """The hand that parameters stand for."""

    vertices: Float[Array, "batch vertex 3"]
    """Metres, where the hand model puts them."""
    joints3d: Float[Array, "batch joint 3"]
    """`skeleton.JOINTS` order, the same place."""
    joints2d: Float[Array, "batch joint 2"]
    """Units of the crop, from its middle."""
    transl: Float[Array, "batch 3"]
    """Metres; from the place above to in front of HaMeR's camera."""


class ManoHead(nn.Module):
    """Three linear layers, added to mean parameters."""

    initialiser: str = "torch"  # INITS

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], mean: MeanParameters
    ) -> ManoParameters:
        """Return the hand of each feature, in float32 whatever the feature is."""
        init, features = initialiser(self.initialiser), features.astype(jnp.float32)

        def added(name: str, to: Array) -> Array:
            layer = nn.Dense(to.shape[0], kernel_init=init, name=name)
            return to[None] + layer(features)

        numbers = added("pose", mean.pose).reshape(len(features), -1, 6)
        matrices = rotations.rotation_6d_to_matrix(numbers)
        return ManoParameters(
            global_orient=matrices[:, :1],
            hand_pose=matrices[:, 1:],
            betas=added("betas", mean.betas),
            cam=added("cam", mean.cam),
        )


def mean_parameters(hand: HandModel, *, fill: float = 0.5) -> MeanParameters:
    """Make mean parameters of a hand model.

    Its mean pose and shape, fingers up and palm to the camera (a body upright, facing
    the camera), in the middle of the crop. (HaMeR's own come from licensed data; its
    checkpoints bring them along.)

    Args:
        hand: The model.
        fill: Side of the box around the joints, in units of the crop. The default is
            that of a box grown by 2, HaMeR's demo.
    """
    fingers = rotations.axis_angle_to_matrix(hand.hands_mean)
    betas = jnp.zeros(hand.shapedirs.shape[-1])
    facing = jnp.asarray(FACING if hand.is_hand else UPRIGHT, fingers.dtype)
    matrices = jnp.concatenate([facing[None], fingers])
    joints = (
        hand.with_shape(betas)
        .with_pose(matrices[0], matrices[1:], form="matrix")
        .joints3d
    )
    low, high = joints[:, :2].min(axis=0), joints[:, :2].max(axis=0)
    scale = 2 * fill / jnp.max(high - low)  # a point appears at scale / 2 * X
    return MeanParameters(
        pose=rotations.matrix_to_rotation_6d(matrices).reshape(-1),
        betas=betas,
        cam=jnp.concatenate([scale[None], -(low + high) / 2]),
    )


def keep_hand(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Store what a model poses hands with: "hand", "faces" and "mean" of "constants".

    Args:
        module: The model, while it is being initialised.
        arrays: Of a hand model, the fields of `HandModel`.
    """
    kept = {name: jnp.asarray(value) for name, value in arrays.items()}
    module.put_variable("constants", "hand", kept)
    module.put_variable("constants", "faces", kept["faces"])
    mean = mean_parameters(HandModel(**kept))
    module.put_variable("constants", "mean", mean._asdict())


def posed(
    hand: HandModel,
    parameters: ManoParameters,
    *,
    joints: str = "skeleton",
    focal_px: float | int = FOCAL_PX,
    crop_px: float | int = CROP_PX,
) -> Posed:
    """Skin the hand and project its joints.

    Args:
        hand: The model.
        parameters: Of each hand.
        joints: One of `JOINTS`.
        focal_px: Focal length of the camera, in pixels of
        crop_px: a crop of this side.

    Raises:
        UserError: `joints` is not one of `JOINTS`.
    """
    if joints not in JOINTS:
        raise UserError(
            f"config.model.joints={joints!r} is not one of {', '.join(JOINTS)}."
        )
    skinned = hand.with_shape(parameters.betas).with_pose(
        parameters.global_orient[:, 0], parameters.hand_pose, form="matrix"
    )
    joints3d = skinned.joints3d
    if joints == "skeleton" and hand.is_hand:
        tips = joints3d[:, _TIPS]
        joints3d = jnp.concatenate([skinned.model_joints, tips], axis=1)
        joints3d = joints3d[:, skeleton.MANO_TO_JOINTS]
    elif joints == "skeleton":
        bones = skinned.model_joints.shape[1]
        joints3d = joints3d.at[:, :bones].set(skinned.model_joints)
    transl = camera.weak_perspective_to_translation(parameters.cam, focal_px, crop_px)
    seen = joints3d + transl[:, None]
    joints2d = focal_px / crop_px * seen[..., :2] / seen[..., 2:]
    return Posed(skinned.vertices, joints3d, joints2d, transl)


def hand_output(
    hand: Posed,
    *,
    root: int,
    size_px: int,
    focal_px: float | int = FOCAL_PX,
    crop_px: float | int = CROP_PX,
) -> HandOutput:
    """Return a posed hand as a `HandOutput`.

    Args:
        hand: From `posed`.
        root: The joint that is subtracted (`skeleton.ROOTS`).
        size_px: Side of the crop as it was given.
        focal_px: As `posed` was given.
        crop_px: As `posed` was given.

    Returns:
        Among others `cam`, the camera that sees the root-relative hand where HaMeR's
        camera sees it: `camera.crop_camera_to_image` places that hand in a photo.
    """
    place = hand.joints3d[:, root]
    return HandOutput(
        vertices=hand.vertices - place[:, None],
        joints3d=hand.joints3d - place[:, None],
        joints2d=(hand.joints2d + 0.5) * size_px,
        cam=camera.translation_to_weak_perspective(
            hand.transl + place, focal_px, crop_px
        ),
    )
