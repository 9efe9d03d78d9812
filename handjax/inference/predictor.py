"""From a photo and a box to a hand in metres: the Python side of `handjax.predict`.

    predictor = HandPredictor.from_workdir("runs/tokenhand")
    hand = predictor("photo.jpg", box_px=(60, 40, 300, 290))
    hand.vertices + hand.translation  # (778, 3), metres, camera axes

Photos are cropped by the functions that make evaluation batches (`crop.py`). Left hands
are mirrored before the network and un-mirrored after it, in this file only.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from handjax import models
from handjax.checkpoints.workdir import load_for_inference
from handjax.errors import UserError
from handjax.family import hand_constants, hypotheses
from handjax.geometry import camera, crop
from handjax.geometry.skeleton import HAND
from handjax.inference import explanations, photos, tta
from handjax.inference.photos import HandBox, Photo
from handjax.inference.prediction import HandHypotheses, HandPrediction, Request
from handjax.types import Explanation, HandOutput
from handjax.visualization.mesh_export import outward_faces

_HAND_EXTENT_M, _BODY_EXTENT_M = 0.18, 1.7
"""Size of a hand or body whose distance only the box can tell."""
_SMALLEST_IN_PHOTO = 1 / 16


class HandPredictor:
    """A trained model with everything that stands between it and a photo."""

    def __init__(
        self,
        config: Any,
        model: Any,
        variables: Any,
        *,
        batch_size: int = 1,
        name: str = "",
        tta_mode: str | None = None,
        num_hypotheses: int = 0,
        seed: int = 0,
        explain: bool = False,
    ):
        _check_hypotheses(config, model, num_hypotheses, tta_mode)
        if tta_mode and tta.answers_per_hand(tta_mode) > 1:
            raise UserError(
                f"tta={tta_mode!r} averages errors, which takes the truth; predict "
                "with 'released' or 'mean'."
            )
        self.config, self.batch_size, self.name = config, batch_size, name
        if tta_mode:
            self.name += f", test-time augmentation {tta_mode!r}"
        self.faces = np.asarray(variables["constants"]["faces"])
        self.skeleton = hand_constants.skeleton_of(variables)
        self._variables = variables
        self._apply = jax.jit(functools.partial(_predict, model, tta_mode))
        self._draw = None
        if num_hypotheses:
            self._draw = jax.jit(
                functools.partial(
                    model.apply, method="hypotheses", count=num_hypotheses
                )
            )
        self._key = jax.random.key(seed)
        self._explain = None
        if explain:
            _check_explains(config, model, variables)
            self._explain = jax.jit(functools.partial(model.apply, method="explain"))

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        *,
        stage: str | None = None,
        step: int | None = None,
        batch_size: int = 1,
        tta_mode: str | None = None,
        num_hypotheses: int = 0,
        seed: int = 0,
        explain: bool = False,
    ) -> "HandPredictor":
        """Load the newest checkpoint of the last stage.

        Args:
            workdir: Of a run.
            stage: Another stage than the last.
            step: Another checkpoint than the newest.
            batch_size: Hands at a time.
            tta_mode: "released" or "mean": look 95 times (see `tta`).
            num_hypotheses: Hands to draw for each box besides the answer.
            seed: Of the draws.
            explain: Keep what the model looked at (`HandPrediction.looked_at`).

        Raises:
            MissingFileError: The workdir has no such checkpoint.
            UserError: The stage reconstructs meshes and sees no image, or hypotheses
                or explanations are asked of a model that has none.
        """
        config, model, variables, found, step = load_for_inference(workdir, stage, step)
        stages = {s.name: s for s in models.load(config.family).stages(config)}
        if not stages[found].needs_image:
            raise UserError(
                f"{str(workdir)!r}: stage {found!r} (step {step}) sees no image, so it "
                "cannot read a photo; train the next stage with handjax.train first."
            )
        model, variables = models.for_inference(model, variables)
        name = f"{config.family}, stage {found}, step {step}"
        return cls(
            config,
            model,
            variables,
            batch_size=batch_size,
            name=name,
            tta_mode=tta_mode,
            num_hypotheses=num_hypotheses,
            seed=seed,
            explain=explain,
        )

    def __call__(
        self,
        image: str | Path | Photo | UInt8[np.ndarray, "height width 3"],
        *,
        box_px: Sequence[float | int] | None = None,
        is_right: bool = True,
        intrinsics: Sequence[float | int] | None = None,
    ) -> HandPrediction:
        """Reconstruct one hand of one photo.

        Args:
            image: A file, or RGB pixels 0..255.
            box_px: x0, y0, x1, y1 around the hand; None takes the middle square.
            is_right: False for a left hand.
            intrinsics: fx, fy, cx, cy in pixels; None as `photo.intrinsics_of` says.
        """
        if isinstance(image, np.ndarray):
            image = Photo(Path("image"), image, None)
        elif not isinstance(image, Photo):
            image = photos.read(image)
        boxes = None
        if box_px is not None:
            x0, y0, x1, y1 = (float(v) for v in box_px)
            boxes = [HandBox((x0, y0, x1, y1), is_right, "given")]
        else:
            middle = photos.whole_image_box(image)
            boxes = [HandBox(middle, is_right, "whole_image")]
        return self.run(requests(image, boxes, intrinsics=intrinsics))[0]

    def run(self, wanted: Sequence[Request]) -> list[HandPrediction]:
        """Reconstruct hands of any photos, `batch_size` at a time."""
        predictions = []
        for start in range(0, len(wanted), self.batch_size):
            group = wanted[start : start + self.batch_size]
            views = [self._view(request) for request in group]
            images = np.stack([view.image for view in views])
            # Always the same shape, so that one compiled program serves all.
            padding = np.repeat(images[-1:], self.batch_size - len(images), axis=0)
            images = np.concatenate([images, padding])
            output, confidence = jax.device_get(self._apply(self._variables, images))
            drawn = None
            if self._draw is not None:
                # One key for all groups: a photo alone and the first of many agree.
                drawn = self._draw(self._variables, images, key=self._key)
                drawn = jax.device_get(drawn)
            seen = None
            if self._explain is not None:
                seen = jax.device_get(self._explain(self._variables, images))
            for i, (request, view) in enumerate(zip(group, views, strict=True)):
                one = _row(output, i)
                sure = None if confidence is None else np.asarray(confidence[i])
                hand = self._placed(request, view, one, sure)
                if drawn is not None:
                    others = self._others(request, view, _row(drawn, i))
                    hand = hand._replace(hypotheses=others)
                if seen is not None:
                    found = explanations.of(
                        hand, view.image, view.H_crop_photo, _row(seen, i)
                    )
                    hand = hand._replace(looked_at=found)
                predictions.append(hand)
        return predictions

    # --- one hand -------------------------------------------------------------------

    def _view(self, request: Request) -> "_View":
        """Crop as evaluation does; a left hand is seen in a mirrored photo."""
        box_px = np.asarray(request.box.box_px, np.float64)
        intrinsics = request.intrinsics.matrix
        mirror = np.eye(3)
        if not request.box.is_right:
            width = request.photo.image.shape[1]
            box_px = crop.mirror_box(box_px, width)
            intrinsics = crop.mirror_intrinsics(intrinsics, width)
            mirror = crop.mirror_homography(width)
        # Boxes are tight around the hand; the middle of a photo is the view itself.
        whole = request.box.source == "whole_image"
        size = self.config.data.crop_size
        scale = 1.0 if whole else self.config.data.box_scale
        view = crop.view(box_px, intrinsics, size, scale=scale)
        H = view.H_crop_image @ mirror
        if not np.isfinite(H).all():
            raise photos.PhotoError(
                f"{request.photo.path}: the box cannot be seen by a camera of focal "
                f"length {intrinsics[0, 0]:g} pixels; correct the box or the camera."
            )
        image = crop.warp_image(request.photo.image, H, size)
        return _View(image, H, view.R_crop_camera, view.intrinsics)

    def _placed(
        self,
        request: Request,
        view: "_View",
        output: HandOutput,
        confidence: np.ndarray | None,
    ) -> HandPrediction:
        """Turn an answer in the crop into one in the photo."""
        is_right = request.box.is_right
        # Directions of the crop camera -> of the real one, then out of the mirror.
        back = view.R_crop_camera.T
        if not is_right:
            back = np.diag(crop.MIRROR) @ back
        vertices = np.asarray(output.vertices, np.float64) @ back.T
        joints3d = np.asarray(output.joints3d, np.float64) @ back.T
        joints2d, translation = None, None
        if output.joints2d is not None:
            points = np.asarray(output.joints2d, np.float64)
            joints2d = crop.warp_points(np.linalg.inv(view.H_crop_photo), points)
            translation = _solved(joints3d, joints2d, request)
        source = "joints2d"
        if output.root_gamma is not None and joints2d is not None:
            root = joints2d[self.skeleton.roots[self.config.data.root]]
            found = _at_depth(root, float(output.root_gamma), view, request)
            if found is not None:
                translation, source = found, "root_depth"
        if translation is None:
            extent = _HAND_EXTENT_M if self.skeleton is HAND else _BODY_EXTENT_M
            translation, source = _from_box(joints3d, request, extent), "box"
        if joints2d is None:
            homogeneous = (joints3d + translation) @ request.intrinsics.matrix.T
            joints2d = homogeneous[:, :2] / homogeneous[:, 2:]
        return HandPrediction(
            box=request.box,
            vertices=vertices,
            joints3d=joints3d,
            joints2d=joints2d,
            translation=translation,
            translation_source=source,
            intrinsics=request.intrinsics,
            faces=outward_faces(self.faces, is_right=is_right),
            indices=None if output.indices is None else np.asarray(output.indices),
            token_confidence=confidence,
            skeleton=self.skeleton,
            stated_confidence=(
                None if output.confidence is None else float(output.confidence)
            ),
        )

    def _others(
        self, request: Request, view: "_View", drawn: hypotheses.Hypotheses
    ) -> HandHypotheses:
        """Place the hypotheses of one hand in the photo, each by itself."""
        fields = ("vertices", "joints3d", "joints2d", "indices", "confidence")
        outputs = HandOutput(**{name: getattr(drawn, name) for name in fields})
        number = len(drawn.confidence)
        hands = tuple(
            self._placed(request, view, _row(outputs, k), None) for k in range(number)
        )
        spread_mm = hypotheses.joint_uncertainty_mm(
            np.asarray(drawn.joints3d, np.float64),
            np.asarray(drawn.weights, np.float64),
            root=self.skeleton.roots[self.config.data.root],
        )
        return HandHypotheses(hands, np.asarray(drawn.weights), spread_mm)


class _View(NamedTuple):
    image: UInt8[np.ndarray, "size size 3"]
    H_crop_photo: Float[np.ndarray, "3 3"]
    """From pixels of the true photo, mirroring included."""
    R_crop_camera: Float[np.ndarray, "3 3"]
    """From the camera's axes (of the mirrored world for a left hand)."""
    intrinsics: Float[np.ndarray, "3 3"]
    """Of the crop camera."""


def requests(
    opened: Photo,
    boxes: Sequence[HandBox],
    *,
    intrinsics: Sequence[float | int] | None = None,
) -> list[Request]:
    """Check the boxes of a photo and settle its camera.

    Raises:
        PhotoError: A box is degenerate or outside the photo.
    """
    lens = photos.intrinsics_of(opened, intrinsics)
    return [
        Request(opened, b._replace(box_px=photos.checked_box(b.box_px, opened)), lens)
        for b in boxes
    ]


def _check_hypotheses(
    config: Any, model: Any, number: int, tta_mode: str | None
) -> None:
    """Refuse hypotheses of families that have none, and of fused views."""
    if number < 0:
        raise UserError(f"hypotheses={number!r} must be 0 (none) or more.")
    if number and not hasattr(model, "hypotheses"):
        family = config.get("family", type(model).__name__)
        raise UserError(
            f"hypotheses={number}: {family!r} gives one answer to an image; leave "
            "hypotheses out, or take a family that samples (one whose Model has a "
            "method `hypotheses`, such as mmhmr)."
        )
    if number and tta_mode:
        raise UserError(
            f"hypotheses={number} are of one view of the hand, and tta={tta_mode!r} "
            "fuses 95; ask for one of the two."
        )


def _check_explains(config: Any, model: Any, variables: Any) -> None:
    """Refuse explanations of models that have none."""
    family = config.get("family", type(model).__name__)
    size = config.data.crop_size
    found = Explanation()
    if hasattr(model, "explain"):
        image = np.zeros((1, size, size, 3), np.uint8)
        look = functools.partial(model.apply, method="explain")
        found = jax.eval_shape(look, variables, image)
    if found.clusters is None and found.joints is None:
        raise UserError(
            f"explain: this model of {family!r} neither clusters places of the image "
            "nor has vertices that look at joints; leave explain out, or take a family "
            "whose Model has a method `explain`, such as tore."
        )


def _row(tree: Any, i: int) -> Any:
    """One example of a batch."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[i]), tree)


def _predict(
    model: Any, tta_mode: str | None, variables: Any, images: Any
) -> tuple[HandOutput, Any]:
    """The model's answer, and the probability of each chosen code."""
    look = functools.partial(model.apply, variables)
    output = tta.predict(look, images, mode=tta_mode) if tta_mode else look(images)
    if output.logits is None:
        return output, None
    probs = jax.nn.softmax(output.logits, axis=-1)
    chosen = output.indices
    if chosen is None:
        chosen = jax.numpy.argmax(output.logits, axis=-1)
    sure = jax.numpy.take_along_axis(probs, chosen[..., None], axis=-1)[..., 0]
    return output._replace(logits=None), sure


def _at_depth(
    root_px: np.ndarray, gamma: float, view: "_View", request: Request
) -> np.ndarray | None:
    """The root joint at its predicted pixel and depth, None if that is behind us."""
    depth = float(camera.root_depth_from_gamma(gamma, view.intrinsics))
    ray = np.linalg.solve(request.intrinsics.matrix, np.append(root_px, 1.0))
    mirror = np.eye(3) if request.box.is_right else np.diag(crop.MIRROR)
    along = float((view.R_crop_camera @ mirror @ ray)[2])
    if not (np.isfinite(depth) and depth > 0 and along > 0):
        return None
    return ray * depth / along


# One compilation for all hands; without jit its loop is compiled at every call.
_solve_translation = jax.jit(camera.solve_translation)


def _solved(joints3d, joints2d, request: Request) -> np.ndarray | None:
    """Where the joints project onto their pixels; None if that cannot be the hand.

    Network joints that bunch together would put the hand metres away: a hand that is
    much smaller or larger in the photo than its box is not believed.
    """
    K = request.intrinsics.matrix
    found = np.asarray(_solve_translation(joints3d, joints2d, K), np.float64)
    placed = joints3d + found
    if not (np.isfinite(placed).all() and placed[:, 2].min() > 0):
        return None
    seen = crop.project(placed, K)
    x0, y0, x1, y1 = request.box.box_px
    ratio = np.ptp(seen, axis=0).max() / max(x1 - x0, y1 - y0)
    # The middle of a photo is no box of the hand, which may fill a small part of it.
    smallest = _SMALLEST_IN_PHOTO if request.box.source == "whole_image" else 1 / 4
    return found if smallest < ratio < 4 else None


def _from_box(joints3d: np.ndarray, request: Request, extent_m: float) -> np.ndarray:
    """A hand of usual size that fills its box: a guess, and reported as one."""
    box = np.reshape(np.asarray(request.box.box_px, np.float64), (2, 2))
    K = request.intrinsics.matrix
    depth = K[0, 0] * extent_m / max(box[1] - box[0])
    ray = np.linalg.solve(K, np.append(box.mean(axis=0), 1.0))
    return ray * depth - np.append(joints3d[:, :2].mean(axis=0), 0.0)
