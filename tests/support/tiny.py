"""What tests of models share: a batch of posed open hands and a two-layer backbone."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from handjax.config.files import load_config
from handjax.family import hand_constants
from handjax.mano import model_files
from handjax.nn import backbones
from handjax.types import Batch

RNG_STREAMS = ("dropout", "drop_path", "codebook", "mask")


class Backbone(nn.Module):
    """One patch convolution and a batch norm; strides and names as the real ones."""

    dim: int = 8

    @nn.compact
    def __call__(self, image, *, train=False):
        # Means over 2 x 2 pixels, and of those patches of 16 x 16.
        pixels = rearrange(image, "b (h y) (w x) c -> b h w y x c", y=2, x=2)
        x = jnp.mean(pixels, axis=(3, 4))
        x = rearrange(x, "b (h y) (w x) c -> b h w (y x c)", y=16, x=16)
        x = nn.Dense(self.dim)(x)
        return {"final": nn.BatchNorm(use_running_average=not train)(x)}


def fields(family, variant="paper", **changes):
    """The fields of a config's model, with changes."""
    config = load_config(f"configs/{family}.py:{variant}")
    return config.model.to_dict() | changes


def patch_backbone(monkeypatch):
    """Let `backbones.build` return the tiny backbone, for every name."""
    monkeypatch.setattr(backbones, "build", lambda name, **options: Backbone())
    monkeypatch.setattr(backbones, "fuse", lambda name, variables: None)


def hand():
    return hand_constants.hand_constants(model_files.load())


def batch(size=4, *, crop=64, seed=0):
    """Shaped and turned open hands in front of noise, all annotations valid."""
    file = model_files.load()
    rng = np.random.default_rng(seed)
    vertices = file.v_template + np.einsum(
        "vxl,nl->nvx", file.shapedirs, rng.normal(size=(size, 10))
    )
    turn = np.linalg.qr(rng.normal(size=(size, 3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))[:, None, None]
    vertices = np.einsum("nxy,nvy->nvx", turn, vertices)
    joints = np.einsum("jv,nvx->njx", model_files.joint_regressor(file), vertices)
    root = joints[:, 9:10]
    eye = np.tile(np.eye(3, dtype=np.float32), (size, 1, 1))
    yes = np.ones(size, bool)
    return Batch(
        image=rng.integers(0, 255, (size, crop, crop, 3)).astype(np.uint8),
        vertices=(vertices - root).astype(np.float32),
        joints3d=(joints - root).astype(np.float32),
        joints2d=(crop / 2 + (joints - root)[..., :2] * 200).astype(np.float32),
        root3d=np.zeros((size, 3), np.float32),
        intrinsics=eye,
        R_crop_camera=eye,
        mano_pose=np.zeros((size, 16, 3), np.float32),
        betas=np.zeros((size, 10), np.float32),
        joints2d_valid=np.ones((size, 21), bool),
        joints3d_valid=yes,
        vertices_valid=yes,
        mano_valid=yes,
        is_right=yes,
        example_valid=yes,
        index=np.arange(size),
    )
