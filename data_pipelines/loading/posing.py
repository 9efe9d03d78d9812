"""Pose the meshes of a batch, fast enough for a loader; numpy, float32.

Data sets that have MANO parameters seldom have meshes, which would be half of a record.
"""

import numpy as np
from jaxtyping import Float

from handjax.mano.model_files import ManoFile, joint_regressor
from handjax.mano.numpy_skinning import axis_angle_to_matrix


class Poser:
    """Pose one hand or body model, by `handjax.mano.numpy_skinning`."""

    def __init__(self, file: ManoFile, root: int):
        """Precompute what posing needs from a model.

        Args:
            file: Model of the right hand, or of a body.
            root: Joint of its skeleton that meshes without a place are put at.
        """
        vertices, numbers = len(file.v_template), file.shapedirs.shape[-1]
        self.root = root
        self._parents = file.parents.tolist()
        self._template = _packed(file.v_template.reshape(-1))
        self._shapes = _packed(file.shapedirs.reshape(-1, numbers).T)
        self._correctives = _packed(file.posedirs.reshape(3 * vertices, -1).T)
        self._weights = _packed(file.weights)
        self._rest = _packed(file.J_regressor @ file.v_template)
        self._rest_shapes = _packed(
            np.einsum("jv,vxb->bjx", file.J_regressor, file.shapedirs)
        )
        self._root_regressor = _packed(joint_regressor(file)[root])

    def vertices(
        self, pose: Float[np.ndarray, "n bone 3"], betas: Float[np.ndarray, "n beta"]
    ) -> Float[np.ndarray, "n vertex 3"]:
        """Pose meshes by absolute axis-angle, metres, before any translation."""
        count, betas = len(pose), betas.astype(np.float32)
        turns = axis_angle_to_matrix(pose).astype(np.float32)
        bends = (turns[:, 1:] - np.eye(3, dtype=np.float32)).reshape(count, -1)
        mesh = self._template + betas @ self._shapes + bends @ self._correctives
        mesh = mesh.reshape(count, -1, 3)
        joints = self._rest + np.tensordot(betas, self._rest_shapes, 1)
        moved = self._weights @ self._moves(turns, joints)
        # Column by column: matmul is slow on many small matrices.
        return moved[..., 9:] + sum(
            moved[..., 3 * x : 3 * x + 3] * mesh[..., x, None] for x in range(3)
        )

    def roots(
        self, vertices: Float[np.ndarray, "n vertex 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Return the root joints of meshes."""
        return np.einsum("v,nvx->nx", self._root_regressor, vertices)

    def _moves(
        self,
        turns: Float[np.ndarray, "n bone 3 3"],
        joints: Float[np.ndarray, "n bone 3"],
    ) -> Float[np.ndarray, "n bone 12"]:
        """Return each bone's transform of rest points: three columns, then a shift."""
        turn, origin = np.empty_like(turns), np.empty_like(joints)
        turn[:, 0], origin[:, 0] = turns[:, 0], joints[:, 0]
        for bone in range(1, joints.shape[1]):
            parent = self._parents[bone]
            turn[:, bone] = turn[:, parent] @ turns[:, bone]
            arm = (joints[:, bone] - joints[:, parent])[..., None]
            origin[:, bone] = (turn[:, parent] @ arm)[..., 0] + origin[:, parent]
        shift = origin - (turn @ joints[..., None])[..., 0]
        columns = np.swapaxes(turn, -1, -2).reshape(*turn.shape[:2], 9)
        return np.concatenate([columns, shift], axis=-1)


def _packed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
