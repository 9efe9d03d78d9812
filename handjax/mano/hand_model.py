"""The hand model: shape and pose to mesh and joints, differentiable, in stages.

- Loading:  `hand = HandModel.load("open")` (or a MANO file)
- Shaping:  `shaped = hand.with_shape(betas)`
- Posing:   `posed = shaped.with_pose(global_orient, hand_pose, transl)`
- Results:  `posed.vertices`, `posed.joints3d`, `posed.model_joints`

or all at once: `vertices, model_joints = skin(hand, mano_pose, betas, transl)`.
Everything is stateless and takes any leading axes; shape and pose may have different
ones that broadcast (one shape, many poses).

Conventions: metres, radians; joint rotations are local (parent from child), the first
is `global_orient`. Poses are absolute: no rotation is the flat hand. Files and layers
with MANO's default `flat_hand_mean=False` store poses relative to the mean pose: give
those with `pose_mean="mean"`. `transl` is added last, as smplx does. Arrays may be of
a right or a left hand; nothing here depends on it.

A body in SMPL's format is the same model with other counts and another tree. Axes: a
hand has 778 `vertex`, 1538 `face`, 16 `bone` (joints of the model, each with a rotation
and skinning weights), 15 `local` (bones but the first), 21 `joint` (what networks
predict) and 10 `beta`; SMPL has 6890, 13776, 24, 23, 24 or more, and 10.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from handjax.geometry import rotations, skeleton
from handjax.mano import model_files
from handjax.mano.model_files import ManoFile, joint_regressor, mirror
from handjax.types import AnyArray

__all__ = ["HandModel", "PosedHand", "ShapedHand", "joint_regressor", "mirror", "skin"]

_FORMS = {"axis_angle": (3,), "matrix": (3, 3), "rotation_6d": (6,)}
"""How a rotation can be given, and the axes that it then has."""


class HandModel(NamedTuple):
    """A hand (or body) model on the device; a pytree of arrays.

    >>> import numpy as np
    >>> import handjax
    >>> hand = handjax.HandModel.load("open").with_shape(np.zeros(10))
    >>> hand.with_pose(np.zeros(3), np.zeros((15, 3))).vertices.shape
    (778, 3)
    """

    v_template: Float[Array, "vertex 3"]
    """Flat rest mesh, metres."""
    shapedirs: Float[Array, "vertex 3 beta"]
    posedirs: Float[Array, "vertex 3 corrective"]
    """Nine correctives for each local rotation."""
    J_regressor: Float[Array, "bone vertex"]
    weights: Float[Array, "vertex bone"]
    joint_regressor: Float[Array, "joint vertex"]
    """`joints3d = joint_regressor @ vertices`, `skeleton.JOINTS` order for a hand."""
    hands_mean: Float[Array, "local 3"]
    """Mean pose, axis-angle."""
    hands_components: Float[Array, "angle angle"]
    """Principal components of the pose, one a row."""
    faces: Int[Array, "face 3"]
    parents: Int[Array, "bone"] | None = None
    """Parent of each bone, -1 for the first; None: a hand's (`skeleton.MANO_PARENTS`),
    whose five fingers move together."""

    @property
    def is_hand(self) -> bool:
        """Whether the tree is MANO's; a body is any other."""
        return self.parents is None

    @classmethod
    def load(cls, source="open", *, dtype=jnp.float32, **options) -> "HandModel":
        """Load a model; the options are those of `mano_files.load`."""
        return cls.from_file(model_files.load(source, **options), dtype=dtype)

    @classmethod
    def from_file(cls, file: ManoFile, *, dtype=jnp.float32) -> "HandModel":
        """Put the arrays of a file on the device."""
        return cls(
            v_template=jnp.asarray(file.v_template, dtype),
            shapedirs=jnp.asarray(file.shapedirs, dtype),
            posedirs=jnp.asarray(file.posedirs, dtype),
            J_regressor=jnp.asarray(file.J_regressor, dtype),
            weights=jnp.asarray(file.weights, dtype),
            joint_regressor=jnp.asarray(joint_regressor(file), dtype),
            hands_mean=jnp.asarray(file.hands_mean.reshape(-1, 3), dtype),
            hands_components=jnp.asarray(file.hands_components, dtype),
            faces=jnp.asarray(file.faces, jnp.int32),
            parents=None if file.is_hand else jnp.asarray(file.parents, jnp.int32),
        )

    def with_shape(self, betas: Float[AnyArray, "*batch beta"]) -> "ShapedHand":
        """Shape the flat hand."""
        betas = jnp.asarray(betas, self.v_template.dtype)
        offsets = _einsum("vxb,...b->...vx", self.shapedirs, betas)
        vertices = jnp.broadcast_to(self.v_template, offsets.shape) + offsets
        joints = _einsum("jv,...vx->...jx", self.J_regressor, vertices)
        return ShapedHand(self, vertices, joints)


class PosedHand(NamedTuple):
    """A hand in a pose."""

    vertices: Float[Array, "*batch vertex 3"]
    """Metres."""
    model_joints: Float[Array, "*batch bone 3"]
    """The model's own joints, a hand's in `skeleton.MANO_JOINTS` order, metres."""
    joints3d: Float[Array, "*batch joint 3"]
    """Joints of the posed mesh, a hand's in `skeleton.JOINTS` order, metres."""


class ShapedHand(NamedTuple):
    """A flat hand of some shape."""

    model: HandModel
    vertices: Float[Array, "*batch vertex 3"]
    """Flat mesh, metres."""
    model_joints: Float[Array, "*batch bone 3"]
    """Its own joints, a hand's in `skeleton.MANO_JOINTS` order."""

    def with_pose(
        self,
        global_orient: Float[AnyArray, "..."],
        hand_pose: Float[AnyArray, "..."],
        transl: Float[AnyArray, "*batch 3"] | None = None,
        *,
        form: str = "axis_angle",
        pose_mean: str = "flat",
    ) -> PosedHand:
        """Pose by pose correctives and linear blend skinning.

        Args:
            global_orient: Rotation of the whole hand about its wrist joint, `*batch`
                and the axes of `form`.
            hand_pose: Local rotations of a hand's joints 1..15 (a body's 1..23),
                `*batch local` and those axes.
            transl: Added after posing.
            form: `"axis_angle"` (3), `"matrix"` (3, 3) or `"rotation_6d"` (6, columns).
            pose_mean: `"flat"` for absolute poses; `"mean"` if `hand_pose` is relative
                to the mean pose (axis-angle only: the mean is added to its numbers).

        Raises:
            ValueError: Shapes or options that do not fit.
        """
        dtype = self.vertices.dtype
        rotation = _matrices(self.model, global_orient, hand_pose, form, pose_mean)
        batch = np.broadcast_shapes(rotation.shape[:-3], self.vertices.shape[:-2])
        if transl is not None:
            batch = np.broadcast_shapes(batch, np.shape(transl)[:-1])
        rotation = jnp.broadcast_to(
            rotation.astype(dtype), (*batch, *rotation.shape[-3:])
        )
        flat = jnp.broadcast_to(self.vertices, (*batch, *self.vertices.shape[-2:]))
        joints = jnp.broadcast_to(
            self.model_joints, (*batch, *self.model_joints.shape[-2:])
        )
        vertices, joints = _blend_skin(self.model, flat, joints, rotation)
        if transl is not None:
            shift = jnp.broadcast_to(jnp.asarray(transl, dtype), (*batch, 3))
            vertices, joints = (x + shift[..., None, :] for x in (vertices, joints))
        joints3d = _einsum("jv,...vx->...jx", self.model.joint_regressor, vertices)
        return PosedHand(vertices, joints, joints3d)


def skin(
    hand: HandModel,
    mano_pose: Float[AnyArray, "*batch bone 3"],
    betas: Float[AnyArray, "*batch beta"],
    transl: Float[AnyArray, "*batch 3"] | None = None,
) -> tuple[Float[Array, "*batch vertex 3"], Float[Array, "*batch bone 3"]]:
    """Return mesh and own joints of an absolute axis-angle pose, wrist first."""
    shaped = hand.with_shape(betas)
    posed = shaped.with_pose(mano_pose[..., 0, :], mano_pose[..., 1:, :], transl)
    return posed.vertices, posed.model_joints


def _matrices(hand, global_orient, hand_pose, form, pose_mean) -> Array:
    """Return the local rotation matrices of all bones of a pose in any form."""
    if form not in _FORMS or pose_mean not in ("flat", "mean"):
        raise ValueError(
            f"form={form!r}, pose_mean={pose_mean!r}: form is one of {list(_FORMS)}, "
            f"pose_mean 'flat' or 'mean'."
        )
    if pose_mean == "mean" and form != "axis_angle":
        raise ValueError(
            f"pose_mean='mean' adds axis-angle numbers, so it needs form='axis_angle', "
            f"not {form!r}. Convert the pose first (handjax.geometry.rotations)."
        )
    axes, count = _FORMS[form], hand.weights.shape[-1] - 1
    ends = len(axes)
    pose, orient = jnp.asarray(hand_pose), jnp.asarray(global_orient)
    if pose.shape[-1 - ends :] != (count, *axes) or orient.shape[-ends:] != axes:
        raise ValueError(
            f"form={form!r} needs global_orient with last axes {axes} and hand_pose "
            f"with {(count, *axes)}; given {orient.shape} and {pose.shape}."
        )
    if pose_mean == "mean":
        pose = pose + jnp.broadcast_to(hand.hands_mean.astype(pose.dtype), pose.shape)
    batch = np.broadcast_shapes(pose.shape[: -1 - ends], orient.shape[:-ends])
    pose = jnp.broadcast_to(pose, (*batch, count, *axes))
    orient = jnp.broadcast_to(orient, (*batch, *axes))
    joined = jnp.concatenate(
        [jnp.expand_dims(orient, len(batch)), pose], axis=len(batch)
    )
    if form == "axis_angle":
        return rotations.axis_angle_to_matrix(joined)
    return rotations.rotation_6d_to_matrix(joined) if form == "rotation_6d" else joined


def _blend_skin(hand: HandModel, flat: Array, joints: Array, rotation: Array):
    """Return the posed mesh and joints of a flat mesh and its skeleton."""
    batch = rotation.shape[:-3]
    bent = rotation[..., 1:, :, :]
    bent = bent - jnp.broadcast_to(jnp.eye(3, dtype=rotation.dtype), bent.shape)
    bent = bent.reshape(*batch, hand.posedirs.shape[-1])
    flat = flat + _einsum("vxp,...p->...vx", hand.posedirs, bent)
    if hand.is_hand:
        R, t = _hand_kinematics(joints, rotation)
    else:
        R, t = _tree_kinematics(joints, rotation, hand.parents)
    # x' = R_j (x - joint_j) + t_j, blended over the joints j.
    shift = t - _einsum("...jab,...jb->...ja", R, joints)
    affine = jnp.concatenate([R, shift[..., None]], axis=-1)
    blended = _einsum("vj,...jab->...vab", hand.weights, affine)
    vertices = _einsum("...vab,...vb->...va", blended[..., :3], flat) + blended[..., 3]
    return vertices, t


def _hand_kinematics(joints: Array, rotation: Array) -> tuple[Array, Array]:
    """Chain local rotations into global ones and joint positions.

    Five fingers of three joints hang off the wrist (`skeleton.MANO_PARENTS`, which
    `mano_files.load` checks), so all fingers move together: three steps, not fifteen.
    """
    batch = rotation.shape[:-3]
    wrist_R, wrist_t = rotation[..., :1, :, :], joints[..., :1, :]
    local_R = rotation[..., 1:, :, :].reshape(*batch, 5, 3, 3, 3)
    rest = joints[..., 1:, :].reshape(*batch, 5, 3, 3)
    R = jnp.broadcast_to(wrist_R, (*batch, 5, 3, 3))
    t = parent = jnp.broadcast_to(wrist_t, (*batch, 5, 3))
    all_R, all_t = [], []
    for level in range(3):
        t = t + _einsum("...fab,...fb->...fa", R, rest[..., level, :] - parent)
        R = _einsum("...fab,...fbc->...fac", R, local_R[..., level, :, :])
        parent = rest[..., level, :]
        all_R.append(R)
        all_t.append(t)
    fingers_R = jnp.stack(all_R, axis=-3).reshape(*batch, 15, 3, 3)
    fingers_t = jnp.stack(all_t, axis=-2).reshape(*batch, 15, 3)
    R = jnp.concatenate([wrist_R, fingers_R], axis=-3)
    return R, jnp.concatenate([wrist_t, fingers_t], axis=-2)


def _tree_kinematics(
    joints: Array, rotation: Array, parents: Array
) -> tuple[Array, Array]:
    """Compute the same for any tree, which is data and may be traced.

    By doubling: a bone's transform is first relative to its parent, then to the bone
    2, 4, 8 ... steps up, so that 24 bones take five rounds, however they hang together.
    """
    count = joints.shape[-2]
    # Index -1, the parent of the first bone, finds this last row: no transform.
    end = [(0, 0)] * (joints.ndim - 2) + [(0, 1), (0, 0)]
    eye = jnp.broadcast_to(
        jnp.eye(3, dtype=rotation.dtype), rotation[..., :1, :, :].shape
    )
    above = jnp.concatenate([parents, jnp.full(1, -1, parents.dtype)])
    R = jnp.concatenate([rotation, eye], axis=-3)
    rest = jnp.pad(joints, end)
    t = rest - rest[..., above, :]
    for _ in range((count - 1).bit_length()):
        t = t[..., above, :] + _einsum("...jab,...jb->...ja", R[..., above, :, :], t)
        R = _einsum("...jab,...jbc->...jac", R[..., above, :, :], R)
        above = above[above]
    return R[..., :count, :, :], t[..., :count, :]


def _einsum(equation: str, *operands: Array) -> Array:
    # Accelerators round matrix products to bf16 or tf32 by default: millimetres here.
    return jnp.einsum(equation, *operands, precision="highest")


assert skeleton.MANO_PARENTS == (
    -1,
    *(p for k in range(1, 16, 3) for p in (0, k, k + 1)),
)
