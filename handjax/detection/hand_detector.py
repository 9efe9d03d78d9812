"""Hands in photos, without a box: found, turned upright, and read at 21 points.

    detector = HandDetector()
    for hand in detector.find(image):
        hand.box_px, hand.landmarks2d_px, hand.is_right, hand.presence

A palm detector looks at the whole picture. Each palm gives a turned square region,
which the landmark network reads; its points give a better region, which is read again.
The networks are MediaPipe's (`nn.palm_detection`, `nn.backbones.hand_landmark`), and
their weights come with handjax. What is around them is here: numpy and OpenCV.

Conventions: pixels x right, y down, the middle of the first pixel is (0, 0); points in
`skeleton.JOINTS` order.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Float

from handjax.detection.regions import (
    CROP_SIZE,
    Region,
    crop_region,
    landmark_region,
    middle,
    outline_box,
    palm_region,
    region_homography,
)
from handjax.errors import UserError
from handjax.geometry.crop import rotation_z, warp_points
from handjax.io import pixels
from handjax.nn import palm_detection
from handjax.nn.backbones import hand_landmark
from handjax.nn.backbones.hand_landmark import HandLandmarks

SURE = 0.9
"""Presence above which a hand counts as found: on 33 real photos every region with less
was a thing or a cut-off hand, and nearly every mesh made from it was wrong."""
POSSIBLE = 0.5
"""Presence below which a region is not reported."""

_BATCH, _MANY = 8, 32
"""Crops are read one by one, and in eights if there are many. Each size is compiled
once, for seconds, and a CPU needs as long for each crop of a batch as for one alone."""
_PALM_SCORE = 0.5
_PALM_OVERLAP = 0.3
_MARGINS = (0.25, 0.6)
"""Shares of the picture's larger side that are added around it, one after the other:
the detector does not see palms that fill its picture. Repeated border pixels fill them,
for beside black ones it overlooks more."""
_ANGLES = np.arange(8) * np.pi / 4
_LIKELY = 3
"""Of those angles, how many are read again. With one, 16 instead of 13 of 150 rendered
hands with given boxes had landmarks a quarter of the box away."""
_BOX_GROWTH = 1.25
_TILE_PX = 192
_REFINED_FROM = 0.1
"""Presence from which a region's points say where the hand is."""
COVERED = 0.7
"""Share of a box from which it is a part of the hand that covers it."""
_NEAR = 0.15


class Palm(NamedTuple):
    """One palm that the detector found."""

    score: float
    """Probability."""
    box_px: Float[np.ndarray, "4"]
    """x0, y0, x1, y1 of the palm without its fingers, pixels of the photo."""
    keypoints_px: Float[np.ndarray, "7 2"]
    """Wrist, index, middle, ring and little knuckle, thumb base and knuckle; pixels."""


class DetectedHand(NamedTuple):
    """One hand of a photo."""

    region: Region
    """Where the landmarks were read."""
    box_px: Float[np.ndarray, "4"]
    """Tight upright box of the whole hand with its wrist, as our models' data has it
    (`outline_box`): x0, y0, x1, y1, pixels of the photo; it may reach outside of it."""
    landmarks2d_px: Float[np.ndarray, "21 2"]
    """Pixels of the photo."""
    depth_px: Float[np.ndarray, "21"]
    """Depth of the points minus the wrist's, away from the camera, as long as so many
    pixels of the photo are at the hand."""
    landmarks3d: Float[np.ndarray, "21 3"]
    """Metres in the axes of the photo's camera (x right, y down, z away), with the
    origin near the middle of the hand. The camera is taken to look straight at it."""
    presence: float
    """Probability that the region shows a hand."""
    is_right: float
    """Probability of a right hand, if the photo is not a mirror image."""
    sure: bool
    """Whether `presence` reaches the detector's `min_score`."""


class HandDetector:
    """Finds the hands of photos."""

    def __init__(
        self, variant: str = "mediapipe_hand_full", min_score: float | int = SURE
    ):
        """Load the networks; they are compiled at the first photo.

        Args:
            variant: Landmark network, "mediapipe_hand_full" or "mediapipe_hand_lite".
            min_score: Presence from which hands are `sure`.

        Raises:
            UserError: An argument is not allowed.
        """
        if not 0 <= min_score <= 1:
            raise UserError(f"min_score={min_score} is not between 0 and 1.")
        self.min_score = float(min_score)
        self.landmarks = LandmarkReader(variant)
        self._run_palms = _palm_network()

    def compile(self) -> None:
        """Compile both networks, which the first photo would do otherwise."""
        size = palm_detection.IMAGE_SIZE
        self._run_palms(np.zeros((1, size, size, 3), np.uint8))
        self.landmarks(np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8))

    def find(self, image: Any, *, thorough: bool = False) -> list[DetectedHand]:
        """Find the hands of a photo, the surest first.

        As long as none is sure the picture is looked at again: with margins, in tiles,
        and with the tiles as regions at eight angles (one second on a CPU).

        Args:
            image: Upright pixels, as `io.pixels.from_array` takes them.
            thorough: Look at the tiles in any case, for small hands beside large ones.

        Returns:
            Hands with a presence of 0.5 or more; see `DetectedHand.sure`.
        """
        image = pixels.from_array(image)
        height, width = image.shape[:2]
        hands = self._from_palms(image, self.find_palms(image))
        for margin in _MARGINS:
            if not _any_sure(hands):
                palms = self._palms(*_with_margin(image, margin))
                hands += self._from_palms(image, palms)
        if thorough or not _any_sure(hands):
            tiles = [t for t in _tiles(height, width) if t.size_px >= _TILE_PX]
            palms = [palm for tile in tiles for palm in self.find_palms(image, tile)]
            hands += self._from_palms(image, palms)
        if not _any_sure(hands):
            whole = _square(height, width)
            for square in (whole, *_tiles(height, width, parts=(2,))):
                hands += self._from_angles(image, square)
        found = without_duplicates(hands)
        return [hand for hand in found if hand.presence >= POSSIBLE]

    def find_in_box(
        self,
        image: Any,
        box_px: Sequence[float | int] | Float[np.ndarray, "4"],
    ) -> DetectedHand:
        """Read the hand in a given box, however it is turned.

        Palms near the box are tried first; if none of them is sure, the box itself is
        read at eight angles.

        Args:
            image: Upright pixels, as `io.pixels.from_array` takes them.
            box_px: x0, y0, x1, y1 around the hand, pixels.

        Returns:
            The hand with the highest presence, even if that is low.

        Raises:
            UserError: The box is empty.
        """
        image = pixels.from_array(image)
        box = np.asarray(box_px, np.float64)
        if not (
            box.shape == (4,)
            and np.isfinite(box).all()
            and box[2] > box[0]
            and box[3] > box[1]
        ):
            raise UserError(
                f"box_px={box.tolist()} is empty; give x0, y0, x1, y1 "
                "with x1 > x0 and y1 > y0."
            )
        side = float(max(box[2] - box[0], box[3] - box[1]))
        square = Region(middle(*box), side * _BOX_GROWTH, 0.0)
        around = square._replace(size_px=2 * side)
        hands = [
            hand
            for hand in self._from_palms(image, self.find_palms(image, around))
            if _inside(middle(*hand.box_px), box)
            and 0.4 * side < max(hand.box_px[2:] - hand.box_px[:2]) < 2 * side
        ]
        if not _any_sure(hands):
            hands += self._from_angles(image, square)
        return max(hands, key=lambda hand: hand.presence)

    def find_palms(self, image: Any, square: Region | None = None) -> list[Palm]:
        """Find palms in an upright square of a photo (default: the whole photo)."""
        image = pixels.from_array(image)
        square = square or _square(*image.shape[:2])
        size = palm_detection.IMAGE_SIZE
        picture = crop_region(image, square, size)
        return self._palms(picture, region_homography(square, size))

    def read_regions(self, image: Any, regions: Sequence[Region]) -> list[DetectedHand]:
        """Read landmarks in regions of a photo, once."""
        if not regions:
            return []
        image = pixels.from_array(image)
        crops = np.stack([crop_region(image, region) for region in regions])
        found = self.landmarks(crops)
        return [
            self._hand(region, HandLandmarks(*(value[i] for value in found)))
            for i, region in enumerate(regions)
        ]

    # --- how hands are looked for ---------------------------------------------------

    def _palms(self, picture: np.ndarray, H: np.ndarray) -> list[Palm]:
        """Find palms in a picture of 192 pixels; H takes the photo's pixels to it."""
        raw = jax.device_get(self._run_palms(picture[None]))
        back = np.linalg.inv(H)
        return [
            Palm(
                palm.score,
                warp_points(back, palm.box_px.reshape(2, 2)).ravel(),
                warp_points(back, palm.keypoints_px),
            )
            for palm in merge_palms(decode_palms(raw.boxes[0], raw.logits[0]))
        ]

    def _from_palms(self, image, palms: Sequence[Palm]) -> list[DetectedHand]:
        # Tiles overlap: the same palm comes more than once.
        kept: list[Palm] = []
        for palm in sorted(palms, key=lambda palm: -palm.score):
            if all(iou(palm.box_px, k.box_px) <= _PALM_OVERLAP for k in kept):
                kept.append(palm)
        regions = [palm_region(palm.box_px, palm.keypoints_px) for palm in kept]
        return self._refined(image, self.read_regions(image, regions))

    def _from_angles(self, image, square: Region) -> list[DetectedHand]:
        turned = [square._replace(angle=float(angle)) for angle in _ANGLES]
        hands = self.read_regions(image, turned)
        # A hand that is read upside down can look the surest until it is read again.
        likely = sorted(hands, key=lambda hand: -hand.presence)[:_LIKELY]
        refined = self._refined(image, likely)
        return [max(refined, key=lambda hand: hand.presence)]

    def _refined(self, image, hands: list[DetectedHand]) -> list[DetectedHand]:
        """Read again where the landmarks say that the hand is, unless that is worse."""
        again = [i for i, hand in enumerate(hands) if hand.presence > _REFINED_FROM]
        regions = [landmark_region(hands[i].landmarks2d_px) for i in again]
        refined = list(hands)
        for i, hand in zip(again, self.read_regions(image, regions), strict=True):
            if hand.presence >= min(hands[i].presence, self.min_score):
                refined[i] = hand
        return refined

    def _hand(self, region: Region, found: HandLandmarks) -> DetectedHand:
        back = np.linalg.inv(region_homography(region))
        points = warp_points(back, np.asarray(found.screen_px[:, :2], np.float64))
        presence = float(found.presence)
        return DetectedHand(
            region=region,
            box_px=outline_box(points),
            landmarks2d_px=points,
            depth_px=found.screen_px[:, 2] * (region.size_px / CROP_SIZE),
            landmarks3d=found.world @ rotation_z(region.angle).T,
            presence=presence,
            is_right=float(found.is_right),
            sure=presence >= self.min_score,
        )


class LandmarkReader:
    """The landmark network on any number of crops, with few sizes of batches."""

    def __init__(self, variant: str = "mediapipe_hand_full"):
        """Load the weights.

        Raises:
            UserError: There is no such variant.
        """
        self.variant = variant
        self._read = _landmark_network(variant)

    def __call__(self, crops: Any) -> HandLandmarks:
        """Read landmarks of crops, RGB (`crop_region`); the fields are numpy arrays."""
        if len(crops):
            crops = np.stack([pixels.from_array(crop) for crop in crops])
        size = _BATCH if len(crops) >= _MANY else 1
        parts = []
        for start in range(0, max(len(crops), 1), size):
            part = crops[start : start + size]
            missing = size - len(part)
            padded = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
            found = jax.device_get(self._read(padded))
            parts.append(HandLandmarks(*(value[: len(part)] for value in found)))
        return HandLandmarks(*map(np.concatenate, zip(*parts, strict=True)))


@functools.cache
def _landmark_network(variant: str):
    variables = hand_landmark.pretrained(variant)
    model = hand_landmark.build(variant)
    return _compiled(model, variables, method="landmarks")


@functools.cache
def _palm_network():
    return _compiled(palm_detection.PalmDetectionNetwork(), palm_detection.pretrained())


def _compiled(model, variables, **options):
    """The network on pictures of 0..255."""
    variables = jax.device_put(variables)

    @jax.jit
    def run(variables, images):
        return model.apply(variables, images.astype(np.float32) / 255, **options)

    return functools.partial(run, variables)


# --- tiles ----------------------------------------------------------------------


def _square(height: int, width: int) -> Region:
    """The square around a whole photo."""
    return Region(middle(0, 0, width - 1, height - 1), float(max(height, width)), 0.0)


def _with_margin(image: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture for the palm detector with a margin of repeated border pixels.

    Returns:
        The picture, and the matrix that takes pixels of the photo to its pixels.
    """
    size, (height, width) = palm_detection.IMAGE_SIZE, image.shape[:2]
    zoom = size / (max(height, width) * (1 + 2 * margin))
    rows, columns = (max(round(n * zoom), 1) for n in (height, width))
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    top, left = (size - rows) // 2, (size - columns) // 2
    edges = (top, size - rows - top, left, size - columns - left)
    picture = cv2.copyMakeBorder(small, *edges, cv2.BORDER_REPLICATE)
    x, y = columns / width, rows / height
    # Halves, for pixels are counted from their middles.
    shift = [left - 0.5 + x / 2, top - 0.5 + y / 2]
    return picture, np.array([[x, 0, shift[0]], [0, y, shift[1]], [0, 0, 1.0]])


def _tiles(height: int, width: int, parts: Sequence[int] = (2, 4)) -> list[Region]:
    """Squares of a half and of a quarter of the larger side, overlapping by a third."""
    tiles = []
    for part in parts:
        side = max(height, width) / part
        y, x = (_spread(n, side) for n in (height, width))
        tiles += [Region(np.array([a, b]), side, 0.0) for b in y for a in x]
    return tiles


def _spread(length: int, side: float) -> Float[np.ndarray, " tile"]:
    """Middles of the fewest tiles that cover a side of the photo."""
    count = max(int(np.ceil((length - side) / (side * 2 / 3))), 0) + 1
    half = min(side, length) / 2
    return np.linspace(half, length - half, count) - 0.5


# --- palms --------------------------------------------------------------------------


def decode_palms(
    boxes: Float[np.ndarray, "anchor 18"], logits: Float[np.ndarray, "anchor"]
) -> list[Palm]:
    """Return the palms with a score above one half, in pixels of the network's picture.

    Args:
        boxes: `palm_detection.Palms.boxes` of one picture.
        logits: The same for `logits`.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))
    found = scores >= _PALM_SCORE
    # Anchors count from the picture's edge, pixels from the middle of the first one.
    middle = palm_detection.anchors()[found] - 0.5
    raw = boxes[found].astype(np.float64).reshape(-1, 9, 2)
    centre, sides = raw[:, 0] + middle, raw[:, 1]
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], 1)
    keypoints = raw[:, 2:] + middle[:, None]
    return [
        Palm(float(s), box, points)
        for s, box, points in zip(scores[found], corners, keypoints, strict=True)
    ]


def merge_palms(palms: Sequence[Palm]) -> list[Palm]:
    """Merge palms that overlap (IoU above 0.3) into their mean, weighted by scores.

    The best palm takes in all that overlap it, then the best of the others does.
    """
    left = sorted(palms, key=lambda palm: -palm.score)
    merged = []
    while left:
        best = left[0].box_px
        inside = [
            p for p in left if p is left[0] or iou(best, p.box_px) > _PALM_OVERLAP
        ]
        left = [p for p in left if not any(p is q for q in inside)]
        weights = np.array([p.score for p in inside])
        weights /= weights.sum()
        box = np.einsum("p,pc->c", weights, np.stack([p.box_px for p in inside]))
        points = np.stack([p.keypoints_px for p in inside])
        merged.append(
            Palm(inside[0].score, box, np.einsum("p,pkc->kc", weights, points))
        )
    return merged


def without_duplicates(hands: Sequence[DetectedHand]) -> list[DetectedHand]:
    """Sort hands by presence and drop those that a better one already tells of.

    The same hand is found again as a part of itself (70 % of the smaller box is covered
    by the other; the side has to be the same, unless the hand is not sure), or with
    nearly the same points (15 % of the box apart).
    """
    kept: list[DetectedHand] = []
    for hand in sorted(hands, key=lambda hand: -hand.presence):
        if not any(_same_hand(hand, other) for other in kept):
            kept.append(hand)
    return kept


def _same_hand(a: DetectedHand, b: DetectedHand) -> bool:
    side = max(_sides(a.box_px).max(), _sides(b.box_px).max())
    apart = np.linalg.norm(a.landmarks2d_px - b.landmarks2d_px, axis=-1).mean()
    # Another hand in front of this one is sure; what is read in a part of it is not.
    same_side = (a.is_right > 0.5) == (b.is_right > 0.5)
    part = covered_share(a.box_px, b.box_px) > COVERED
    return bool(apart < _NEAR * side or (part and (same_side or not a.sure)))


def covered_share(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    """Return the share of the smaller of two boxes that the other covers."""
    smaller = min(_sides(a).prod(), _sides(b).prod())
    return float(intersection(a, b) / smaller)


def iou(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    """Return the shared area of two boxes over that of both together."""
    shared = intersection(a, b)
    return shared / (_sides(a).prod() + _sides(b).prod() - shared)


def intersection(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    """Return the area that two boxes share."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.maximum(sides, 0).prod())


def _any_sure(hands: Sequence[DetectedHand]) -> bool:
    return any(hand.sure for hand in hands)


def _inside(point: np.ndarray, box: np.ndarray) -> bool:
    return bool((point >= box[:2]).all() and (point <= box[2:]).all())


def _sides(box: np.ndarray) -> np.ndarray:
    return np.maximum(box[2:] - box[:2], 1e-6)
