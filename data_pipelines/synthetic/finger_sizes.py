"""Fingers with sizes of their own, which the ten shape coefficients cannot give.

A finger is stretched along its bones and thickened across them in the rest pose; its
joints move with it, because they are regressed from the vertices as always.
"""

import numpy as np
from jaxtyping import Float

from data_pipelines.synthetic import hand as hands


def vary(
    hand: hands.RenderHand,
    lengths: Float[np.ndarray, "5"],
    widths: Float[np.ndarray, "5"],
) -> hands.RenderHand:
    """Return the hand with other fingers, in both of its meshes.

    Args:
        hand: What `hands.load` returned.
        lengths: Factors of the fingers' lengths, in MANO's order: index, middle,
            little, ring, thumb.
        widths: Factors of their thickness.
    """
    file, affine = hand.file, _affine(hand, lengths, widths)
    annotated = _moved(affine, file.v_template, file.weights)
    return hand._replace(
        file=file._replace(v_template=annotated.astype(file.v_template.dtype)),
        v_template=_moved(affine, hand.v_template, hand.weights),
    )


def sample(
    rng: np.random.Generator,
    hand: hands.RenderHand,
    *,
    length: float,
    width: float,
    common_width: float,
) -> hands.RenderHand:
    """Draw fingers; the spreads are those of `recipes.Recipe`."""
    lengths = np.exp(np.clip(rng.normal(0, 1, 5), -2, 2) * length)
    log_widths = np.clip(rng.normal(0, 1, 6), -2, 2)
    widths = np.exp(log_widths[:5] * width + log_widths[5] * common_width)
    return vary(hand, lengths, widths)


def _affine(hand: hands.RenderHand, lengths, widths) -> Float[np.ndarray, "16 3 4"]:
    """Map of the rest pose that each joint's vertices follow."""
    joints = hand.rest_joints
    tips = hand.file.v_template[hand.file.tip_ids[[1, 2, 4, 3, 0]]]
    affine = np.tile(np.eye(3, 4), (16, 1, 1))
    for finger in range(5):
        base = joints[3 * finger + 1]
        moved = base  # where the joint comes to lie
        for owner in range(3 * finger + 1, 3 * finger + 4):
            start = joints[owner]
            end = tips[finger] if owner % 3 == 0 else joints[owner + 1]
            axis = (end - start) / np.linalg.norm(end - start)
            along = np.outer(axis, axis)
            linear = widths[finger] * (np.eye(3) - along) + lengths[finger] * along
            affine[owner, :, :3] = linear
            affine[owner, :, 3] = moved - linear @ start
            moved = linear @ end + affine[owner, :, 3]
    return affine


def _moved(affine: np.ndarray, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    maps = np.einsum("vj,jik->vik", weights, affine)
    return np.einsum("vik,vk->vi", maps[..., :3], points) + maps[..., 3]
