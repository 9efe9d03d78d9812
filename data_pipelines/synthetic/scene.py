"""Draw one random scene: hand, arm, clothes, things, camera, light."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import finger_sizes, holding, meshes, surroundings
from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic.appearance import lens
from data_pipelines.synthetic.poses import FACING, random_rotation, sample_betas
from data_pipelines.synthetic.prior import PosePrior
from data_pipelines.synthetic.recipes import RECIPES, Recipe

_SLEEVE, _GROUND = 0.5, 0.3


class Scene(NamedTuple):
    """Everything the renderer and the record need; a right hand."""

    meshes: list[meshes.Mesh]
    """The hand first."""
    vertices: Float[np.ndarray, "778 3"]
    joints3d: Float[np.ndarray, "21 3"]
    mano_pose: Float[np.ndarray, "16 3"]
    """Absolute axis-angle, wrist first, camera axes."""
    betas: Float[np.ndarray, "10"] | None
    """None where they do not describe the hand."""
    transl: Float[np.ndarray, "3"]
    """Added after skinning."""
    intrinsics: Float[np.ndarray, "3 3"]
    """Pixels; the centre of the first pixel is (0, 0)."""
    around: surroundings.Surroundings
    lens: lens.Lens
    held: holding.Placed | None
    """In the camera's axes."""


class Sampler:
    """Draws scenes; holds the assets, which are read once."""

    def __init__(
        self,
        image_size: int,
        max_turn: int | float = 180.0,
        recipe: str = "default",
    ):
        self.image_size, self.max_turn = image_size, max_turn
        self.recipe = RECIPES[recipe]
        self.hand = hands.load()
        self.prior = PosePrior(self.hand)

    def __call__(self, rng: np.random.Generator) -> Scene:
        """Draw a scene from `rng` alone."""
        recipe, betas = self.recipe, sample_betas(rng)
        hand = self._hand(rng)
        angles, held = self._fingers(rng, hand, betas)
        root, wrist = _view(rng, self.max_turn, recipe), _wrist_bend(rng)
        posed = hands.pose(hand, angles, betas, root, wrist)
        intrinsics, shift, reach = _camera(rng, posed.vertices, self.image_size)
        drawn = [meshes.skin(rng, hand, posed.drawn + shift)]
        if rng.random() < _SLEEVE:
            drawn.append(meshes.sleeve(rng, hand, posed, (wrist, root, shift)))
        if held is not None:
            held = held._replace(
                turn=root @ held.turn, centre=root @ held.centre + shift
            )
            drawn.append(meshes.thing(rng, held))
        if rng.random() < recipe.in_the_way:
            solid = np.concatenate([mesh.vertices for mesh in drawn])
            middle = posed.vertices.mean(0) + shift
            thing = holding.stand_in_the_way(rng, solid, middle, reach)
            if thing is not None and thing.centre[2] > 0.05:
                drawn.append(meshes.thing(rng, thing))
        around = surroundings.sample(rng, self.image_size)
        if rng.random() < _GROUND:
            ground = meshes.ground(rng, drawn, intrinsics, self.image_size)
            drawn += [ground] if ground is not None else []
        fingers = Rotation.from_matrix(hands.joint_rotations(hand, angles)).as_rotvec()
        return Scene(
            meshes=drawn,
            vertices=posed.vertices + shift,
            joints3d=posed.joints3d + shift,
            mano_pose=np.concatenate(
                [Rotation.from_matrix(root).as_rotvec()[None], fingers]
            ),
            betas=betas if recipe.has_betas else None,
            transl=shift - posed.wrist_rest,
            intrinsics=intrinsics,
            around=around,
            lens=lens.sample(rng),
            held=held,
        )

    def _hand(self, rng):
        """Return the hand, with fingers of their own sizes if the recipe wants it."""
        if self.recipe.has_betas:
            return self.hand
        return finger_sizes.sample(
            rng,
            self.hand,
            length=self.recipe.finger_length,
            width=self.recipe.finger_width,
            common_width=self.recipe.width,
        )

    def _fingers(self, rng, hand, betas):
        """Draw joint angles, and the thing in the hand if there is one."""
        if rng.random() < self.recipe.hold:
            for _ in range(4):
                grasp = holding.grasp(rng, hand, betas)
                if grasp is not None:
                    placed, angles = grasp
                    return angles, placed
        return self.prior.sample(rng), None


def _view(
    rng: np.random.Generator, max_turn: int | float, recipe: Recipe
) -> np.ndarray:
    """Draw a rotation from hand to camera: any, more often with the arm below.

    Under 180 degrees, `max_turn` keeps to rotations at most that far from `FACING`;
    otherwise the recipe asks for shares of edge-on and of upright hands.
    """
    if max_turn < 180:
        while (turn := random_rotation(rng)).magnitude() > np.radians(max_turn):
            pass
        return turn.as_matrix() @ FACING
    if recipe.edge_on or recipe.upright:
        kind = rng.random()
        if kind < recipe.edge_on + recipe.upright:
            side_on = 90.0 if kind < recipe.edge_on else 0.0
            return _turned_about_fingers(rng, side_on)
    root = random_rotation(rng).as_matrix()
    if rng.random() < 0.6:
        for _ in range(3):
            forearm = root @ [1, 0, 0]
            if forearm[1] > -0.2 and forearm[2] > -0.6:
                break
            root = random_rotation(rng).as_matrix()
    return root


def _turned_about_fingers(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Draw a view turned by about so much from palm or back, fingers mostly up."""
    about_fingers = degrees + rng.normal(0, 15 if degrees else 30)
    if rng.random() < 0.5:
        about_fingers += 180
    angles = [about_fingers, rng.normal(0, 25), rng.normal(0, 50)]
    return Rotation.from_euler("yxz", angles, degrees=True).as_matrix() @ FACING


def _wrist_bend(rng: np.random.Generator) -> np.ndarray:
    sideways, flexion = np.clip(rng.normal(0, [9, 20]), -45, 45)
    return Rotation.from_euler("yz", [sideways, flexion], degrees=True).as_matrix()


def _camera(rng: np.random.Generator, vertices: np.ndarray, size: int):
    """Draw intrinsics, the hand's place, and the picture's half width."""
    middle = (vertices.max(0) + vertices.min(0)) / 2
    extent = np.abs(vertices - middle)[:, :2].max()
    half_field = np.radians(rng.uniform(12, 55)) / 2
    focal, centre = 0.5 * size / np.tan(half_field), (size - 1) / 2
    margin = rng.uniform(1.08, 1.7)
    # The margin holds at the hand's near side, which perspective enlarges.
    near = middle[2] - vertices[:, 2].min()
    distance = extent * margin / np.tan(half_field) + 0.5 * near
    aside = rng.uniform(-1, 1, 2) * (margin - 1) * extent * 0.8
    shift = np.array([*(aside - middle[:2]), distance - middle[2]])
    intrinsics = np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    return intrinsics, shift, extent * margin
