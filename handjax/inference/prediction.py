"""Records of prediction: what is asked for, and what is found."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from handjax.geometry.skeleton import HAND, Skeleton
from handjax.inference.photos import HandBox, Intrinsics, Photo


class ExplanationView(NamedTuple):
    """What a model attended to, in pixels of the crop, un-mirrored for a left hand."""

    crop: UInt8[np.ndarray, "size size 3"]
    """Input of the network."""
    joints_px: Float[np.ndarray, "joint 2"]
    """The reconstructed joints."""
    vertices_px: Float[np.ndarray, "vertex 2"]
    """The reconstructed mesh, projected."""
    clusters: Float[np.ndarray, "cluster height width"] | None
    """Weight of every place of the image's map in each clustered token."""
    attention: Float[np.ndarray, "vertex joint"] | None
    """Attention of each vertex to each joint."""


class HandPrediction(NamedTuple):
    """One reconstructed hand; OpenCV axes (x right, y down, z forward) of the photo.

    >>> import handjax
    >>> "translation" in handjax.HandPrediction._fields
    True
    """

    box: HandBox
    vertices: Float[np.ndarray, "vertex 3"]
    """Metres, relative to the root joint; add `translation` for the camera's frame."""
    joints3d: Float[np.ndarray, "joint 3"]
    """Same frame, in the order of `skeleton`."""
    joints2d: Float[np.ndarray, "joint 2"]
    """Pixels of the upright photo."""
    translation: Float[np.ndarray, "3"]
    """The root joint in the camera's frame, metres; as good as the intrinsics are."""
    translation_source: str
    """"root_depth" (predicted), "joints2d" (3-D joints put onto the predicted 2-D ones)
    or "box" (its size)."""
    intrinsics: Intrinsics
    faces: Int[np.ndarray, "face 3"]
    """Outward for this side."""
    indices: Int[np.ndarray, "token"] | None
    """Code of each token (token families)."""
    token_confidence: Float[np.ndarray, "token"] | None
    """Probability of each chosen code."""
    skeleton: Skeleton = HAND
    """Names and bones of the joints."""
    hypotheses: "HandHypotheses | None" = None
    """Other hands drawn for the box, where they were added (`handjax.predict`)."""
    stated_confidence: float | None = None
    """`HandOutput.confidence`, of families that state one."""
    explanation: ExplanationView | None = None
    """What the model attended to, where it was added (`handjax.predict`)."""
    mano_pose: Float[np.ndarray, "bone 3"] | None = None
    """Absolute axis-angle in radians, wrist first, of models that predict it; of a left
    hand, of its mirror image."""
    betas: Float[np.ndarray, "beta"] | None = None
    """Shape of the hand model, with `mano_pose`."""
    presence: float | None = None
    """Probability that the region shows a hand, of models with a detector."""
    not_sure: bool = False
    """Whether the mesh is likely wrong: a presence below the detector's `min_score`, or
    landmarks that no pose of the hand can take."""

    @property
    def confidence(self) -> float | None:
        """Mean probability of the chosen codes; None for families without tokens."""
        if self.stated_confidence is not None:
            return self.stated_confidence
        if self.token_confidence is None:
            return None
        return float(self.token_confidence.mean())


class HandHypotheses(NamedTuple):
    """Hands drawn for one box, the most confident first."""

    hands: tuple[HandPrediction, ...]
    """Each placed in the photo by itself."""
    weights: Float[np.ndarray, "hypothesis"]
    """Shares of the sum of their confidences."""
    joint_uncertainty_mm: Float[np.ndarray, "joint"]
    """Spread of each joint, relative to the root, as `hypotheses.joint_uncertainty_mm`
    defines it."""


class Request(NamedTuple):
    """One hand to reconstruct."""

    photo: Photo
    box: HandBox
    intrinsics: Intrinsics
