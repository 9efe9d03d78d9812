"""A family small enough for tests of the trainer: an MLP and a toy codebook."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_pipelines.loading.mixtures import Drawn
from handjax.config import schema as configs
from handjax.family.stage import Stage
from handjax.types import Batch, HandOutput, Paper

PAPER = Paper(name="Fake", title="A family for tests", url="", equations={})


class Tokenizer(nn.Module):
    width: int

    def setup(self):
        self.encoder = nn.Dense(self.width)
        self.decoder = nn.Dense(778 * 3)
        self.codes = self.variable("codebook", "embedding", jnp.zeros, (4, self.width))

    def __call__(self, vertices):
        tokens = self.encoder(vertices.reshape(vertices.shape[0], -1))
        nearest = jnp.argmin(
            jnp.sum((tokens[:, None] - self.codes.value[None]) ** 2, -1), axis=-1
        )
        hot = jax.nn.one_hot(nearest, 4)
        if not self.is_initializing():
            target = jnp.einsum("bc,bd->cd", hot, tokens) / (hot.sum(0)[:, None] + 1e-3)
            self.codes.value = 0.9 * self.codes.value + 0.1 * target
        return self.decode(tokens)

    def decode(self, tokens):
        return self.decoder(tokens).reshape(tokens.shape[0], 778, 3)


class Model(nn.Module):
    width: int = 8
    dtype: str = "float32"

    def setup(self):
        self.tokenizer = Tokenizer(self.width)
        self.head = nn.Dense(self.width, dtype=self.dtype)
        self.norm = nn.BatchNorm(dtype=self.dtype)
        self.drop = nn.Dropout(0.1)

    def __call__(self, image, *, train=False):
        x = jnp.mean(image.astype(jnp.float32) / 255, axis=1)
        x = self.norm(x.reshape(x.shape[0], -1), use_running_average=not train)
        tokens = self.drop(self.head(x), deterministic=not train)
        vertices = self.tokenizer.decode(tokens.astype(jnp.float32))
        return HandOutput(vertices=vertices, joints3d=vertices[:, :21])

    def reconstruct(self, vertices):
        vertices = self.tokenizer(vertices)
        return HandOutput(vertices=vertices, joints3d=vertices[:, :21])

    def init_all(self, batch, hand):
        self.put_variable("constants", "faces", jnp.asarray(hand.faces))
        self.reconstruct(batch.vertices)
        return self(batch.image)


def _l1(output, batch):
    return jnp.mean(jnp.abs(output.vertices - batch.vertices))


def tokenizer_loss(model, variables, batch, rngs):
    del rngs
    output, updates = model.apply(
        variables, batch.vertices, method="reconstruct", mutable=["codebook"]
    )
    loss = _l1(output, batch)
    return {"vertices": loss}, {"mm": 1000 * loss}, updates


def mesh_loss(model, variables, batch, rngs):
    output, updates = model.apply(
        variables, batch.image, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    loss = _l1(output, batch)
    size = jnp.mean(output.vertices**2)
    return {"vertices": loss, "size": size}, {"mm": 1000 * loss}, updates


def refuse_narrow(config, model, variables, info):
    del model, variables
    if info and info["config"]["model"]["width"] != config.model.width:
        raise ValueError("the tokenizer has another width than config.model.width")


def stages(config):
    del config
    return (
        Stage(
            name="tokenizer",
            loss_fn=tokenizer_loss,
            predict_fn=lambda m, v, b: m.apply(
                v, b.vertices, method="reconstruct", mutable=["codebook"]
            )[0],
            trainable="^tokenizer/",
            needs_image=False,
        ),
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=lambda m, v, b: m.apply(v, b.image),
            trainable="^(?!tokenizer/)",
            needs_image=True,
            check=refuse_narrow,
        ),
    )


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    del variant
    config = configs.base()
    config.family = "fake"
    config.model = dict(width=8)
    config.stages.tokenizer = configs.stage(
        steps=6, batch_size=8, losses=dict(vertices=1.0), data="poses", grad_clip=1.0
    )
    config.stages.mesh = configs.stage(
        steps=6,
        batch_size=8,
        losses=dict(vertices=10.0, size=0.1),
        groups=dict(head=dict(pattern="^head/", name="sgd", lr=0.5)),
    )
    config.data.crop_size = 16
    config.train.checkpoint_every = 2
    config.train.log_every = 1
    config.train.num_images = 1
    config.train.compile_cache = ""
    return config


def batch(size: int, seed: tuple[int, ...], crop: int = 16) -> Batch:
    """Hands that are noise, the same for the same seed."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(0, 0.05, (size, *shape)).astype(np.float32)

    yes = np.ones(size, bool)
    return Batch(
        image=rng.integers(0, 255, (size, crop, crop, 3), dtype=np.uint8),
        vertices=normal(778, 3),
        joints3d=normal(21, 3),
        joints2d=normal(21, 2),
        root3d=normal(3),
        intrinsics=normal(3, 3),
        R_crop_camera=normal(3, 3),
        mano_pose=normal(16, 3),
        betas=normal(10),
        joints2d_valid=np.ones((size, 21), bool),
        joints3d_valid=yes,
        vertices_valid=yes,
        mano_valid=yes,
        is_right=yes,
        example_valid=yes,
        index=np.arange(size),
    )


class Data:
    """Batches from memory; step n is the same however the run got there.

    Each process has its rows of it.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def train(self, stage, batch_size, start_step):
        step = start_step
        while True:
            made = batch(batch_size * jax.process_count(), (self.seed, step))
            begin = batch_size * jax.process_index()
            made = jax.tree.map(lambda x: x[begin : begin + batch_size], made)  # noqa: B023
            yield made if stage.needs_image else made._replace(image=None)
            step += 1

    def evaluation(self, stage):
        made = batch(8, (self.seed, 10**6))
        yield made if stage.needs_image else made._replace(image=None)

    def drawn(self, stage, examples):
        return [Drawn("noise", examples, 32)] if stage.needs_image else []

    def describe(self) -> str:
        return "noise from memory"

    def describe_filters(self, stages):
        return []

    def fingerprint(self) -> str:
        return "noise"

    def describe_poses(self) -> str:
        return "noise from memory"


HAND = types.SimpleNamespace(faces=np.zeros((1538, 3), np.int32))
