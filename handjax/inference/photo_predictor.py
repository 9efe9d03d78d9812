"""The model "landmarks" and the hand detector: from a photo to all hands in it.

predictor = handjax.load("landmarks")
for hand in predictor.hands("photo.jpg"):
hand.vertices + hand.translation  # (778, 3), metres, camera axes
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from handjax.detection.hand_detector import SURE, HandDetector
from handjax.errors import UserError
from handjax.geometry.skeleton import HAND
from handjax.inference import photos, released
from handjax.inference.landmark_predictor import LandmarkPrediction, LandmarkPredictor
from handjax.inference.photos import HandBox
from handjax.inference.prediction import HandPrediction, Request
from handjax.inference.predictor import FindsHands, Image, requests
from handjax.visualization.mesh_export import outward_faces


class PhotoPredictor(FindsHands):
    """Weights that come with handjax, with everything between them and a photo."""

    def __init__(
        self,
        loaded: released.Released,
        *,
        name: str = "landmarks",
        batch_size: int = 8,
        min_score: float | int = SURE,
    ):
        """Load the detector beside the model; both are compiled at the first photo.

        Args:
            loaded: Weights of the family "landmarks".
            name: Identifies the model in reports.
            batch_size: Hands that callers hand over at a time; each is fitted alone.
            min_score: Presence below which a hand is `not_sure`.

        Raises:
            UserError: `min_score` or `batch_size` is out of range.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more.")
        self.config, self.name, self.batch_size = loaded.config, name, batch_size
        self.skeleton, self.licence = HAND, loaded.about["licence"]
        self.detector = HandDetector(min_score=min_score)
        self._lifter = LandmarkPredictor(loaded.model, loaded.variables)

    def compile(self) -> None:
        """Compile side by side what the first photo would compile one by one."""
        with ThreadPoolExecutor() as pool:
            parts = [
                pool.submit(part.compile) for part in (self.detector, self._lifter)
            ]
        for part in parts:
            part.result()

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
            box_px: x0, y0, x1, y1 around the hand; None takes the surest hand.
            is_right: The side; None lets the detector decide.
            intrinsics: fx, fy, cx, cy in pixels; None as `photos.intrinsics_of` says.

        Raises:
            UserError: No box is given and no hand is found.
        """
        photo = photos.opened(image)
        if box_px is None:
            found = self.hands(photo, intrinsics=intrinsics, is_right=is_right)
            if not found:
                raise UserError(f"{photo.path}: no hand was found; give its box.")
            return found[0]
        given = photos.four_numbers(str(photo.path), "box_px", box_px)
        hand = self.detector.find_in_box(photo.image, given)
        side = hand.is_right > 0.5 if is_right is None else is_right
        box = HandBox(given, side, "given", hand, is_right is not None)
        return self.run(requests(photo, [box], intrinsics=intrinsics))[0]

    def run(self, wanted: Sequence[Request]) -> list[HandPrediction]:
        """Reconstruct hands of any photos, one for each request."""
        return [self._one(request) for request in wanted]

    def check_hypotheses(self, count: int) -> None:
        """Refuse hypotheses, which this model does not have."""
        raise UserError(
            f"--hypotheses={count}: the model {self.name!r} predicts one hand; draw "
            "others with a family that samples, such as mmhmr, by --workdir."
        )

    def check_explains(self) -> None:
        """Refuse explanations, which this model does not have."""
        raise UserError(
            f"--explain: the model {self.name!r} has no maps to show; use a family "
            "that has them, such as tore, by --workdir."
        )

    def _one(self, request: Request) -> HandPrediction:
        box, image = request.box, request.photo.image
        hand = box.reading
        if hand is None:
            hand = self.detector.find_in_box(image, box.box_px)
        found = self._lifter(
            [hand],
            request.intrinsics.matrix,
            is_right=[box.is_right if box.side_given else None],
        )[0]
        return self._prediction(request, found)

    def _prediction(
        self, request: Request, found: LandmarkPrediction
    ) -> HandPrediction:
        fields: dict[str, Any] = {
            name: getattr(found, name)
            for name in (
                *("vertices", "joints3d", "joints2d", "translation"),
                *("mano_pose", "betas", "presence", "not_sure"),
            )
        }
        return HandPrediction(
            box=request.box._replace(is_right=found.is_right),
            translation_source="joints2d",
            intrinsics=request.intrinsics,
            faces=outward_faces(self._lifter.faces, is_right=found.is_right),
            indices=None,
            token_confidence=None,
            **fields,
        )
