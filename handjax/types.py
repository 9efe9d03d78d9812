"""Records that cross files.

Conventions, everywhere in handjax: metres and radians; OpenCV camera axes (x right,
y down, z forward); 2-D in pixels of the network crop; joints in `skeleton.JOINTS`
order; models see right hands only (the data path mirrors left ones).

Counts are data: a hand has 778 `vertex`, 21 `joint`, 16 `bone` (joints of the hand
model, each with a rotation) and 10 `beta`; a body model of `config.hand.source` brings
its own, and its joints are those of `ManoFile.skeleton`.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

AnyArray = Array | np.ndarray


class Paper(NamedTuple):
    """Where a family comes from, and which of its equations live in which file."""

    name: str
    """Short name that equation tags begin with, such as "TokenHand"."""
    title: str
    url: str
    equations: dict[int | str, str]
    """Equation (number, or name where the source does not number it) -> what it is;
    each has exactly one home, the docstring tagged `(<name> Eq. <key>)`."""
    not_code: dict[int | str, str] = {}  # noqa: RUF012 - NamedTuple defaults are shared by design
    """Equations that are no code of ours, and why."""


class HandFeatures(NamedTuple):
    """What a landmark network says about an upright crop (`nn.hand_features`)."""

    screen_px: Float[AnyArray, "batch 21 3"]
    """Points of the crop: x, y in its pixels, z in the same unit, minus the wrist's."""
    world: Float[AnyArray, "batch 21 3"]
    """Points in metres, in the axes of the crop."""
    presence: Float[AnyArray, "batch"]
    """Probability that the crop shows a hand."""
    is_right: Float[AnyArray, "batch"]
    """Probability of a right hand."""
    pooled: Float[AnyArray, "batch dim"]
    """Mean of the last map."""
    sampled: Float[AnyArray, "batch 21 channel"]
    """All maps at the points, one after the other from stride 4 on."""


class Batch(NamedTuple):
    """One training or evaluation batch, as the loader makes it (see `data_pipelines`).

    >>> import handjax
    >>> handjax.Batch._fields[:3]
    ('image', 'vertices', 'joints3d')

    3-D is in the axes of the crop's virtual camera, which the loader obtains by turning
    the real camera towards the box (`crop.py`); left hands are already mirrored.
    """

    image: UInt8[AnyArray, "batch height width 3"] | None
    """RGB, 0..255; None in stages that need no image."""
    vertices: Float[AnyArray, "batch vertex 3"]
    """Mesh, metres, minus `root3d`."""
    joints3d: Float[AnyArray, "batch joint 3"]
    """Joints in `skeleton.JOINTS` order, metres, minus `root3d`."""
    joints2d: Float[AnyArray, "batch joint 2"]
    """Pixels of the crop, x right, y down; the centre of the first pixel is (0, 0)."""
    root3d: Float[AnyArray, "batch 3"]
    """Root joint (`config.data.root`) in the crop camera, metres; zero where the real
    camera is not known."""
    intrinsics: Float[AnyArray, "batch 3 3"]
    """Camera matrix of the crop, pixels."""
    R_crop_camera: Float[AnyArray, "batch 3 3"]
    """Rotation from the real camera's axes to the crop camera's."""
    mano_pose: Float[AnyArray, "batch bone 3"]
    """Absolute axis-angle in radians, wrist first, crop camera; zero if not known."""
    betas: Float[AnyArray, "batch beta"]
    """Shape coefficients of the hand model; zero where not known."""
    joints2d_valid: Bool[AnyArray, "batch joint"]
    """The joint is annotated and strictly inside both the photo and the crop."""
    joints3d_valid: Bool[AnyArray, "batch"]
    """All joints are known."""
    vertices_valid: Bool[AnyArray, "batch"]
    mano_valid: Bool[AnyArray, "batch"]
    """Pose and betas are known."""
    is_right: Bool[AnyArray, "batch"]
    """Side in the photo, before mirroring."""
    example_valid: Bool[AnyArray, "batch"]
    """False for the padding that fills the last evaluation batch."""
    index: Int[AnyArray, "batch"]
    """Position of the example in its split, to name it in reports."""
    real_pose: Float[AnyArray, "real bone 3"] | None = None
    """Poses that belong to no example, for a discriminator: axis-angle in radians,
    wrist first; `Stage.real_poses` for each example, None where a stage wants none."""
    real_betas: Float[AnyArray, "real beta"] | None = None
    """Their shape coefficients."""
    text: Int[AnyArray, "batch length"] | None = None
    """Token ids of what the hand shows in words (`nn.text_encoder`); None in stages
    that read none."""
    joints2d_confidence: Float[AnyArray, "batch joint"] | None = None
    """How sure the annotators are of `joints2d`, 0..1; None where they do not say."""
    joints3d_known: Bool[AnyArray, "batch joint"] | None = None
    """Joints of which the place is known, of hands some of whose are not; none without
    the root. None where it is all or none."""
    betas_valid: Bool[AnyArray, "batch"] | None = None
    """Whether betas are supervised; zero betas may serve as a prior
    (`data_pipelines.loading.filters`). None: `mano_valid` decides."""

    features: HandFeatures | None = None
    """Computed once and read instead of `image` by stages with `data="features"`."""

    @property
    def seen(self) -> "AnyArray | HandFeatures | None":
        """What a network reads: features that were computed before, or the image."""
        return self.image if self.features is None else self.features

    @property
    def joints2d_weights(self) -> AnyArray:
        """Confidence of the joints that are valid, 0 of the others; float32."""
        valid = self.joints2d_valid.astype(np.float32)
        if self.joints2d_confidence is None:
            return valid
        return valid * self.joints2d_confidence

    @property
    def known_joints3d(self) -> AnyArray:
        """(batch, joint): whether a joint's place is known."""
        if self.joints3d_known is None:
            shape = self.joints3d.shape[:2]
            return self.joints3d_valid[:, None] & np.ones(shape, bool)
        return self.joints3d_known

    @property
    def known_betas(self) -> AnyArray:
        """(batch,): whether betas count."""
        return self.mano_valid if self.betas_valid is None else self.betas_valid


class TextFeatures(NamedTuple):
    """What an encoder of texts makes of token ids."""

    tokens: Float[Array, "batch length dim"]
    """A feature of each token, for cross-attention."""
    mask: Bool[Array, "batch length"]
    """Whether the token belongs to the text; False behind its end."""
    pooled: Float[Array, "batch dim_pooled"]
    """One feature of the text."""


class HandOutput(NamedTuple):
    """What every family predicts; optional fields are None when a family has none.

    >>> import numpy as np
    >>> import handjax
    >>> vertices, joints3d = np.zeros((1, 778, 3)), np.zeros((1, 21, 3))
    >>> handjax.HandOutput(vertices, joints3d).logits is None
    True
    """

    vertices: Float[AnyArray, "batch vertex 3"]
    """Mesh, metres, crop camera axes, relative to the root joint."""
    joints3d: Float[AnyArray, "batch joint 3"]
    """Joints in `skeleton.JOINTS` order, same frame."""
    joints2d: Float[AnyArray, "batch joint 2"] | None = None
    """Pixels of the network crop."""
    logits: Float[AnyArray, "batch token code"] | None = None
    """Token scores before softmax (token families)."""
    indices: Int[AnyArray, "batch token"] | None = None
    """Chosen code of each token (token families)."""
    cam: Float[AnyArray, "batch 3"] | None = None
    """Weak perspective of the crop: scale, x, y (families that predict one)."""
    root_gamma: Float[AnyArray, "batch"] | None = None
    """Depth of the root joint, free of scale: metres by `camera.root_depth_from_gamma`
    (families that predict one)."""
    confidence: Float[AnyArray, "batch"] | None = None
    """How sure the model is of the hand, 0..1: the mean probability of the codes it
    chose (families that sample). No probability of being right: it compares hands of
    one model only."""


class Explanation(NamedTuple):
    """What a model attends to, for explanation sheets; None what it does not have."""

    clusters: Float[AnyArray, "batch cluster height width"] | None = None
    """Weight of every place of the image's map, which covers the whole crop, in each
    clustered token."""
    joints: Float[AnyArray, "batch vertex joint"] | None = None
    """Attention of each vertex of the mesh to each joint, as a mean over heads."""


Variables = dict[str, Any]
"""Flax variables: `params`, `batch_stats`, `codebook`, `constants`."""
