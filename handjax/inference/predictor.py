"""From a photo and a box to a hand in metres: the Python side of `handjax.predict`.

    predictor = HandPredictor.from_workdir("runs/tokenhand")
    hand = predictor("photo.jpg", box_px=(60, 40, 300, 290))
    hand.vertices + hand.translation  # (778, 3), metres, camera axes

Photos are cropped by the functions that make evaluation batches (`crop.py`), and hands
come back to them by `placement.py`.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Float, UInt8

from handjax import models
from handjax.checkpoints.workdir import load_for_inference
from handjax.detection.hand_detector import SURE, DetectedHand, HandDetector
from handjax.errors import UserError
from handjax.family import hand_constants, hypotheses
from handjax.family.capabilities import Explains, Samples
from handjax.geometry import crop
from handjax.geometry.skeleton import HAND
from handjax.inference import explanations, photos, placement
from handjax.inference import tta as augmentation
from handjax.inference.box_detectors import find_boxes
from handjax.inference.photos import HandBox, Photo
from handjax.inference.placement import BoxGuard, CropView, Placed
from handjax.inference.prediction import (
    ExplanationView,
    HandHypotheses,
    HandPrediction,
    Request,
)
from handjax.types import Explanation, HandOutput
from handjax.visualization.mesh_export import outward_faces

_HAND_EXTENT_M, _BODY_EXTENT_M = 0.18, 1.7
"""Size of a hand or body whose distance only the box can tell."""
_SMALLEST_IN_BOX, _SMALLEST_IN_PHOTO = 1 / 4, 1 / 16
"""Smallest believed size of a hand in its box, or in a photo without a box."""

Image = Any
"""A path, or pixels as `io.pixels.from_array` takes them: RGB 0..255, floats 0..1."""


class FindsHands:
    """What predictors share that find the hands of a photo by themselves."""

    detector: HandDetector

    def run(self, wanted: Sequence[Request]) -> list[HandPrediction]:
        """Reconstruct hands of any photos, one for each request."""
        raise NotImplementedError

    def hands(
        self,
        image: Image,
        *,
        is_right: bool | None = None,
        intrinsics: Sequence[float | int] | None = None,
    ) -> list[HandPrediction]:
        """Reconstruct all hands of a photo, the surest first.

        Args:
            image: A file, or RGB pixels 0..255 (floats: 0..1).
            is_right: The side of all of them; None lets the detector decide.
            intrinsics: fx, fy, cx, cy in pixels; None as `photos.intrinsics_of` says.
        """
        photo = photos.opened(image)
        boxes = self.find(photo)
        if is_right is not None:
            boxes = [b._replace(is_right=is_right, side_given=True) for b in boxes]
        return self.run(requests(photo, boxes, intrinsics=intrinsics))

    def find(self, image: Image) -> list[HandBox]:
        """Return the boxes of all hands, the surest first, each with its reading."""
        return find_boxes(self.detector, photos.opened(image).image)


class HandPredictor(FindsHands):
    """A trained model that reads photos."""

    def __init__(
        self,
        config: Any,
        model: Any,
        variables: Any,
        *,
        batch_size: int = 1,
        tta: str | None = None,
        name: str = "",
        min_score: float | int = SURE,
        licence: str | None = None,
    ):
        """Prepare a model for photos; it is compiled at the first one.

        Args:
            config: Of the run.
            model: Of the config's family.
            variables: Of that model.
            batch_size: Hands at a time.
            tta: Test-time augmentation: "released" or "mean" averages 95 views of each
                crop (see `inference.tta`).
            name: Identifies the model in reports.
            min_score: Presence below which a hand is `not_sure`, of models that read
                upright regions.
            licence: Of released weights; those of one's own state none.

        Raises:
            UserError: The test-time augmentation gives no single hand, or `batch_size`
                is below 1.
        """
        if tta and config.get("model", {}).get("features", ""):
            raise UserError(
                f"tta={tta!r} turns crops, and this model reads upright ones; predict "
                "without."
            )
        if tta and augmentation.answers_per_hand(tta) > 1:
            raise UserError(
                f"tta={tta!r} averages errors, which takes the truth; predict "
                "with 'released' or 'mean'."
            )
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more.")
        self.config, self.batch_size, self.name = config, batch_size, name
        self.licence = licence
        if tta:
            self.name += f", test-time augmentation {tta!r}"
        self.faces = np.asarray(variables["constants"]["faces"])
        self.skeleton = hand_constants.skeleton_of(variables)
        self._model, self._variables, self._tta = model, variables, tta
        self._root = self.skeleton.roots[config.data.root]
        self._min_score = min_score
        self._predict = jax.jit(functools.partial(_predict, model, tta))
        self._draw = jax.jit(functools.partial(_draw, model), static_argnames="count")
        self._explain = jax.jit(functools.partial(model.apply, method="explain"))

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        *,
        stage: str | None = None,
        step: int | None = None,
        **options: Any,
    ) -> "HandPredictor":
        """Load the newest checkpoint of the last stage.

        Args:
            workdir: Of a run.
            stage: Another stage than the last.
            step: Another checkpoint than the newest.
            **options: `batch_size`, `tta` and `min_score` of the class.

        Raises:
            MissingFileError: The workdir has no such checkpoint.
            UserError: The stage reconstructs meshes and reads no image.
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
        return cls(config, model, variables, name=name, **options)

    # --- one photo ------------------------------------------------------------------

    def __call__(
        self,
        image: Image,
        *,
        box_px: Sequence[float | int] | None = None,
        is_right: bool | None = None,
        intrinsics: Sequence[float | int] | None = None,
    ) -> HandPrediction:
        """Reconstruct one hand of one photo.

        Args:
            image: A file, or RGB pixels 0..255 (floats: 0..1).
            box_px: x0, y0, x1, y1 around the hand; None takes the middle square, or
                the surest hand of models with a detector (`reads_upright`).
            is_right: False for a left hand; None for a right one, or what the detector
                says.
            intrinsics: fx, fy, cx, cy in pixels; None as `photos.intrinsics_of` says.

        Raises:
            UserError: No box is given, and the detector finds no hand.
        """
        if box_px is not None or not self.reads_upright:
            return self.run([request(image, box_px, is_right, intrinsics)])[0]
        photo = photos.opened(image)
        found = self.hands(photo, is_right=is_right, intrinsics=intrinsics)
        if not found:
            raise UserError(f"{photo.path}: no hand was found; give its box.")
        return found[0]

    def hypotheses(
        self,
        image: Image,
        number: int,
        *,
        box_px: Sequence[float | int] | None = None,
        is_right: bool = True,
        intrinsics: Sequence[float | int] | None = None,
        seed: int = 0,
    ) -> HandHypotheses:
        """Draw several hands for one box of one photo.

        Args:
            image: A file, or RGB pixels 0..255 (floats: 0..1).
            number: How many.
            box_px: As for a call, like the next two.
            is_right: False for a left hand.
            intrinsics: fx, fy, cx, cy in pixels.
            seed: Of the draws.

        Raises:
            UserError: The family does not sample; see `check_hypotheses`.
        """
        wanted = [request(image, box_px, is_right, intrinsics)]
        return self.run_hypotheses(wanted, number, seed=seed)[0]

    def explain(
        self,
        image: Image,
        *,
        box_px: Sequence[float | int] | None = None,
        is_right: bool = True,
        intrinsics: Sequence[float | int] | None = None,
    ) -> ExplanationView:
        """Return what the model attends to for one hand of one photo.

        Args:
            image: A file, or RGB pixels 0..255 (floats: 0..1).
            box_px: As for a call, like the next two.
            is_right: False for a left hand.
            intrinsics: fx, fy, cx, cy in pixels.

        Raises:
            UserError: The family explains nothing; see `check_explains`.
        """
        self.check_explains()
        wanted = [request(image, box_px, is_right, intrinsics)]
        return self.run_explanations(wanted, self.run(wanted))[0]

    @property
    def reads_upright(self) -> bool:
        """Whether the model reads regions in which the fingers point upwards.

        The detector of such a model finds hands and regions alike.
        """
        return bool(self.config.get("model", {}).get("features", ""))

    @functools.cached_property
    def detector(self) -> HandDetector:
        """The detector, loaded when it is first needed."""
        return HandDetector(min_score=self._min_score)

    # --- many photos ----------------------------------------------------------------

    def run(self, wanted: Sequence[Request]) -> list[HandPrediction]:
        """Reconstruct hands of any photos, `batch_size` at a time."""
        predictions = []
        for group in self._groups(wanted):
            output, confidence = jax.device_get(
                self._predict(self._variables, group.images)
            )
            placed = self._placed(output, group.view, group.intrinsics, group.guard)
            predictions += [
                self._hand(one, _row(placed, i), _row(output, i), _row(confidence, i))
                for i, one in enumerate(group.requests)
            ]
        return predictions

    def run_hypotheses(
        self, wanted: Sequence[Request], number: int, *, seed: int = 0
    ) -> list[HandHypotheses]:
        """Draw `number` hands for each box, each placed in the photo by itself.

        Raises:
            UserError: See `check_hypotheses`.
        """
        self.check_hypotheses(number)
        # One key for all groups: a photo alone and the first of many agree.
        key, found = jax.random.key(seed), []
        for group in self._groups(wanted):
            drawn = self._draw(self._variables, group.images, key=key, count=number)
            drawn = jax.device_get(drawn)
            fields = ("vertices", "joints3d", "joints2d", "indices", "confidence")
            outputs = HandOutput(**{name: getattr(drawn, name) for name in fields})
            view = CropView(*(x[:, None] for x in group.view))
            guard = BoxGuard(*_each_hypothesis(group.guard))
            placed = self._placed(outputs, view, group.intrinsics[:, None], guard)
            for i, one in enumerate(group.requests):
                hands = tuple(
                    self._hand(one, _row(placed, (i, k)), _row(outputs, (i, k)))
                    for k in range(number)
                )
                spread_mm = hypotheses.joint_uncertainty_mm(
                    np.asarray(drawn.joints3d[i], np.float64),
                    np.asarray(drawn.weights[i], np.float64),
                    root=self._root,
                )
                weights = np.asarray(drawn.weights[i])
                found.append(HandHypotheses(hands, weights, spread_mm))
        return found

    def run_explanations(
        self, wanted: Sequence[Request], hands: Sequence[HandPrediction]
    ) -> list[ExplanationView]:
        """Return what the model attends to, with the hands that `run` gave.

        Raises:
            UserError: See `check_explains`.
        """
        self.check_explains()
        found: list[ExplanationView] = []
        for group in self._groups(wanted):
            said = jax.device_get(self._explain(self._variables, group.images))
            for i in range(len(group.requests)):
                view = CropView(*(x[i] for x in group.view))
                hand, image = hands[len(found)], group.images[i]
                found.append(explanations.of(hand, image, view, _row(said, i)))
        return found

    def check_hypotheses(self, number: int) -> None:
        """Refuse hypotheses of families that have none, and of fused views.

        Raises:
            UserError: Names what to change.
        """
        if number < 1:
            raise UserError(f"hypotheses={number!r} must be 1 or more.")
        if not isinstance(self._model, Samples):
            raise UserError(
                f"hypotheses={number}: {self._family!r} gives one answer to an image; "
                "leave hypotheses out, or take a family that samples (one whose Model "
                "has a method `hypotheses`, such as mmhmr)."
            )
        if self._tta:
            raise UserError(
                f"hypotheses={number} are of one view of the hand, and "
                f"tta={self._tta!r} fuses 95; ask for one of the two."
            )

    def check_explains(self) -> None:
        """Refuse explanations of models that have none.

        Raises:
            UserError: Names what to change.
        """
        size, found = self.config.data.crop_size, Explanation()
        if isinstance(self._model, Explains):
            image = np.zeros((1, size, size, 3), np.uint8)
            found = jax.eval_shape(self._explain, self._variables, image)
        if found.clusters is None and found.joints is None:
            raise UserError(
                f"explain: this model of {self._family!r} neither clusters places of "
                "the image nor has vertices that look at joints; leave explain out, or "
                "take a family whose Model has a method `explain`, such as tore."
            )

    # --- one batch ------------------------------------------------------------------

    @property
    def _family(self) -> str:
        return self.config.get("family", type(self._model).__name__)

    def _groups(self, wanted: Sequence[Request]) -> Iterator["_Group"]:
        for start in range(0, len(wanted), self.batch_size):
            group = wanted[start : start + self.batch_size]
            yield self._group([self._read(one) for one in group])

    def _read(self, one: Request) -> Request:
        """Return the hand with the detector's reading, which upright regions need."""
        if not self.reads_upright or one.box.reading is not None:
            return one
        reading = self.detector.find_in_box(one.photo.image, one.box.box_px)
        side = one.box.is_right if one.box.side_given else reading.is_right > 0.5
        return one._replace(box=one.box._replace(reading=reading, is_right=side))

    def _group(self, wanted: Sequence[Request]) -> "_Group":
        """Crop as evaluation does."""
        size = self.config.data.crop_size
        # Always the same shape, so that one compiled program serves all.
        padding = self.batch_size - len(wanted)
        padded = [*wanted, *[wanted[-1]] * padding]
        intrinsics = np.stack([one.intrinsics.matrix for one in padded])
        intrinsics = intrinsics.astype(np.float64)
        box_px = np.array([one.box.box_px for one in padded], np.float64)
        # Boxes are tight around the hand; the middle of a photo is the view itself.
        whole = np.array([one.box.source == "whole_image" for one in padded])
        seen_px, angle = box_px, np.zeros(len(padded))
        scale = np.where(whole, 1.0, self.config.data.box_scale)
        if self.reads_upright:
            # `run` has read the boxes that came without a reading.
            readings = [cast(DetectedHand, one.box.reading) for one in padded]
            regions = [reading.region for reading in readings]
            seen_px = np.array([region.square_px for region in regions])
            angle = np.array([-region.angle for region in regions])
            scale = np.ones(len(padded))
        view = placement.view(
            seen_px,
            intrinsics,
            np.array([one.photo.image.shape[1] for one in padded], np.float64),
            size,
            is_right=np.array([one.box.is_right for one in padded]),
            scale=scale,
            angle=angle,
        )
        images = [
            _cropped(one, H, size)
            for one, H in zip(wanted, view.H_crop_photo, strict=False)
        ]
        return _Group(
            requests=wanted,
            images=np.stack([*images, *[images[-1]] * padding]),
            view=view,
            intrinsics=intrinsics,
            guard=BoxGuard(
                box_px,
                _HAND_EXTENT_M if self.skeleton is HAND else _BODY_EXTENT_M,
                smallest=np.where(whole, _SMALLEST_IN_PHOTO, _SMALLEST_IN_BOX),
            ),
        )

    def _placed(
        self, output: HandOutput, view: CropView, intrinsics: Any, guard: BoxGuard
    ) -> Placed:
        return placement.to_photo(
            output, view, intrinsics, root=self._root, guard=guard
        )

    def _hand(
        self,
        one: Request,
        placed: Placed,
        output: HandOutput,
        token_confidence: np.ndarray | None = None,
    ) -> HandPrediction:
        stated = output.confidence
        assert placed.joints2d is not None  # a box is always given
        reading = one.box.reading
        return HandPrediction(
            box=one.box,
            vertices=placed.vertices,
            joints3d=placed.joints3d,
            joints2d=placed.joints2d,
            translation=placed.translation,
            translation_source=str(placed.translation_source),
            intrinsics=one.intrinsics,
            faces=outward_faces(self.faces, is_right=one.box.is_right),
            indices=output.indices,
            token_confidence=token_confidence,
            skeleton=self.skeleton,
            stated_confidence=None if stated is None else float(stated),
            presence=None if reading is None else reading.presence,
            not_sure=reading is not None and not reading.sure,
        )


class _Group(NamedTuple):
    """Hands that the network sees at once; the last one is repeated to fill it up."""

    requests: Sequence[Request]
    """Without the padding; all other fields have `batch_size` rows."""
    images: UInt8[np.ndarray, "batch size size 3"]
    view: CropView
    intrinsics: Float[np.ndarray, "batch 3 3"]
    guard: BoxGuard


def request(
    image: Image,
    box_px: Sequence[float | int] | None,
    is_right: bool | None,
    intrinsics: Sequence[float | int] | None,
) -> Request:
    """Check one hand of one photo; see `HandPredictor.__call__` for the arguments.

    Raises:
        PhotoError: The photo cannot be read, or the box is degenerate or outside of it.
    """
    photo, source = photos.opened(image), "given"
    if box_px is None:
        given, source = photos.whole_image_box(photo), "whole_image"
    else:
        given = photos.four_numbers(str(photo.path), "box_px", box_px)
    side, said = is_right is None or is_right, is_right is not None
    box = HandBox(given, side, source, side_given=said)
    return requests(photo, [box], intrinsics=intrinsics)[0]


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
    opened = photos.opened(opened)
    lens = photos.intrinsics_of(opened, intrinsics)
    return [
        Request(opened, b._replace(box_px=photos.checked_box(b.box_px, opened)), lens)
        for b in boxes
    ]


def _cropped(one: Request, H_crop_photo: np.ndarray, size: int) -> np.ndarray:
    """Warp a photo.

    Raises:
        PhotoError: The box is where the camera does not look.
    """
    if not np.isfinite(H_crop_photo).all():
        raise photos.PhotoError(
            f"{one.photo.path}: the box cannot be seen by a camera of focal length "
            f"{one.intrinsics.matrix[0, 0]:g} pixels; correct the box or the camera."
        )
    return crop.warp_image(one.photo.image, H_crop_photo, size)


def _each_hypothesis(guard: BoxGuard) -> list[Any]:
    """The fields of a guard, with an axis for hypotheses behind that of the batch."""
    return [x[:, None] if isinstance(x, np.ndarray) else x for x in guard]


def _row(tree: Any, at: int | tuple[int, ...]) -> Any:
    """Return one example of a batch."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[at]), tree)


def _draw(
    model: Any, variables: Any, images: Any, *, key: Any, count: int
) -> hypotheses.Hypotheses:
    return model.apply(variables, images, key=key, count=count, method="hypotheses")


def _predict(
    model: Any, tta: str | None, variables: Any, images: Any
) -> tuple[HandOutput, Any]:
    """Return the model's answer, and the probability of each chosen code."""
    look = functools.partial(model.apply, variables)
    output = augmentation.predict(look, images, mode=tta) if tta else look(images)
    if output.logits is None:
        return output, None
    probs = jax.nn.softmax(output.logits, axis=-1)
    chosen = output.indices
    if chosen is None:
        chosen = jax.numpy.argmax(output.logits, axis=-1)
    sure = jax.numpy.take_along_axis(probs, chosen[..., None], axis=-1)[..., 0]
    return output._replace(logits=None), sure
