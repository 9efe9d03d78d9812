"""From the detector's hands of a photo to meshes, by landmarks alone.

    predictor = LandmarkPredictor.load()
    for hand in predictor(HandDetector().find(image), intrinsics):
        hand.vertices + hand.translation  # (778, 3), metres, camera axes

The model of `models.landmarks` proposes a hand, and `mano_fit` moves it onto the
landmarks. Left hands are mirrored before and un-mirrored after. Where the detector
doubts the side, both are tried and the one that fits better is kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from handjax.detection.hand_detector import DetectedHand
from handjax.detection.regions import Region
from handjax.errors import UserError
from handjax.geometry import crop
from handjax.inference import released
from handjax.mano import fit
from handjax.mano.hand_model import HandModel
from handjax.nn.landmark_noise import Landmarks

WEIGHTS = released.path_of("landmarks")
_DOUBT = (0.2, 0.8)
"""Probabilities of a right hand between which both sides are tried."""
_DOES_NOT_FIT = 0.08
_MIRROR = np.diag(crop.MIRROR)
WEIGHTS_OF_FIT = fit.Weights(
    points2d=1.0, points3d=0.3, pose=0.03, shape=0.05, initial=0.3, limits=1.0
)


class LandmarkPrediction(NamedTuple):
    """One hand; OpenCV axes of the photo's camera, on its own side."""

    vertices: Float[np.ndarray, "778 3"]
    """Metres, relative to the middle knuckle; add `translation`."""
    joints3d: Float[np.ndarray, "21 3"]
    """The same frame, in `skeleton.JOINTS` order."""
    joints2d: Float[np.ndarray, "21 2"]
    """Where they are in the photo, pixels."""
    translation: Float[np.ndarray, "3"]
    """The middle knuckle in the camera, metres; as good as the intrinsics are."""
    mano_pose: Float[np.ndarray, "16 3"]
    """Absolute axis-angle, the wrist first; of a left hand, of its mirror image."""
    betas: Float[np.ndarray, "10"]
    is_right: bool
    presence: float
    """Probability that there is a hand; see `not_sure`."""
    not_sure: bool
    """Whether presence is below the detector's `min_score`, or the hand cannot take the
    pose of its landmarks (`residual` above 8 %): such meshes are mostly wrong."""
    residual: float
    """Mean distance of the landmarks from where this hand has them, as a share of the
    larger side of their box."""


class LandmarkPredictor:
    """The trained model and the fit."""

    def __init__(self, model: Any, variables: Any, *, iterations: int = 15):
        """Keep a model of the family "landmarks".

        Args:
            model: The family's Model.
            variables: Of that model.
            iterations: Of the fit; 0 only puts the model's hand in its place.
        """
        self.hand = HandModel(**variables["constants"]["hand"])
        self.faces = np.asarray(variables["constants"]["faces"])
        self._variables = jax.device_put(variables)
        self._iterations = iterations

        def lift(variables, landmarks):
            found = model.apply(variables, landmarks, method="lift")
            return found.local, found.betas

        self._lift = jax.jit(lift)

    @classmethod
    def load(cls, path: str | Path = WEIGHTS, **options: Any) -> "LandmarkPredictor":
        """Load released weights; `options` are those of the constructor.

        Raises:
            MissingFileError: There is no such file.
            UserError: The file holds another family, or is damaged.
        """
        found = released.load(path)
        if found.config.family != "landmarks":
            raise UserError(
                f"{path}: weights of the family {found.config.family!r}; "
                "LandmarkPredictor needs those of 'landmarks'."
            )
        return cls(found.model, found.variables, **options)

    def compile(self) -> None:
        """Compile what the first photo would, by predicting the flat hand."""
        template = np.asarray(self.hand.v_template, np.float64)
        joints = np.asarray(self.hand.joint_regressor) @ template
        joints = joints - joints.mean(axis=0)
        flat = 112 + 600 * joints[:, :2]
        box_px = np.concatenate([flat.min(0), flat.max(0)])
        region = Region(np.full(2, 112.0), 224.0, 0.0)
        hand = DetectedHand(
            region, box_px, flat, 600 * joints[:, 2], joints, 1.0, 1.0, True
        )
        self([hand], crop.assumed_intrinsics(224, 224))

    def __call__(
        self,
        hands: Sequence[DetectedHand],
        intrinsics: Float[np.ndarray, "3 3"],
        *,
        is_right: Sequence[bool | None] | None = None,
    ) -> list[LandmarkPrediction]:
        """Predict the meshes of the hands of one photo, in order.

        Args:
            hands: Of `HandDetector`.
            intrinsics: Camera matrix of the photo, pixels.
            is_right: What the user says about each side; None where the detector
                decides.
        """
        said = [None] * len(hands) if is_right is None else list(is_right)
        if len(said) != len(hands):
            raise UserError(
                f"is_right has {len(said)} entries for {len(hands)} hands; give one "
                "for each, None where it is not known."
            )
        found = []
        for hand, side in zip(hands, said, strict=True):
            tried = [self._fitted(hand, intrinsics, s) for s in _sides(hand, side)]
            found.append(min(tried, key=lambda one: one[0])[1])
        return found

    def _fitted(
        self, hand: DetectedHand, intrinsics: np.ndarray, is_right: bool
    ) -> tuple[float, LandmarkPrediction]:
        """Return the cost of one side, and the hand."""
        R_region_camera = _turn_to_region(hand, intrinsics)
        landmarks, world = _upright(hand)
        if not is_right:
            landmarks = landmarks._replace(
                screen=landmarks.screen * crop.MIRROR,
                world=landmarks.world * crop.MIRROR,
            )
        batch = jax.tree.map(lambda x: np.asarray(x, np.float32)[None], landmarks)
        local, betas = jax.device_get(self._lift(self._variables, batch))
        back = R_region_camera.T
        if not is_right:
            back = _MIRROR @ back @ _MIRROR
        local = np.concatenate([back @ local[:, :1], local[:, 1:]], axis=1)
        fitted = fit.fit(
            self.hand,
            points2d=hand.landmarks2d_px[None],
            intrinsics=intrinsics,
            points3d=(world @ R_region_camera)[None],
            is_right=np.array([is_right]),
            initial=fit.Initial(local, betas),
            convention="mediapipe",
            weights=WEIGHTS_OF_FIT,
            iterations=self._iterations,
        )
        # Both are known, for 2-D points were given.
        assert fitted.residual_px is not None and fitted.joints2d is not None
        side = max(hand.box_px[2:] - hand.box_px[:2])
        residual = float(fitted.residual_px[0] / side)
        one = LandmarkPrediction(
            vertices=fitted.vertices[0],
            joints3d=fitted.joints3d[0],
            joints2d=fitted.joints2d[0],
            translation=fitted.translation[0],
            mano_pose=fitted.mano_pose[0],
            betas=fitted.betas[0],
            is_right=is_right,
            presence=hand.presence,
            not_sure=not hand.sure or residual > _DOES_NOT_FIT,
            residual=residual,
        )
        return float(fitted.cost[0, -1]), one


def _sides(hand: DetectedHand, said: bool | None) -> list[bool]:
    """Return the sides to try: what was said, what is sure, or both."""
    if said is not None:
        return [bool(said)]
    low, high = _DOUBT
    if low < hand.is_right < high:
        return [True, False]
    return [hand.is_right > 0.5]


def _upright(hand: DetectedHand) -> tuple[Landmarks, np.ndarray]:
    """Return landmarks in the axes of their region, and the world points alone."""
    turn = crop.rotation_z(hand.region.angle)
    flat = hand.landmarks2d_px - hand.region.centre_px
    screen = np.concatenate([flat, hand.depth_px[:, None]], axis=-1) @ turn
    world = hand.landmarks3d @ turn
    return Landmarks(screen, world, np.asarray(hand.presence)), world


def _turn_to_region(hand: DetectedHand, intrinsics: np.ndarray) -> np.ndarray:
    """Return R_region_camera: towards the region's middle, then upright."""
    centre = np.asarray(hand.region.centre_px, np.float64)
    box = np.concatenate([centre - 1, centre + 1])
    view = crop.view(box, intrinsics, 224, angle=-hand.region.angle)
    return view.R_crop_camera
