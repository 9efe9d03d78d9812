"""HaMeR: reconstructing hands in 3D with transformers (CVPR 2024).

One stage, "mesh". A vision transformer looks at the middle three quarters of the
columns of a square crop; a transformer decoder with a single query token reads its
patches; three linear layers turn the token into MANO parameters and a camera, added to
mean parameters. `configs/hamer.py:paper` is the released network. Its code is
MIT-licensed, its weights are not for commercial use, and MANO has a licence of its own.

Parameters (`parameter_table`): backbone 630,912,000; decoder and heads 39,497,837;
discriminator 1,545,211, which only training needs.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from handjax.errors import UserError
from handjax.family.hand_constants import HandConstants, check_root, parameters_by_part
from handjax.family.stage import Stage
from handjax.geometry.skeleton import root_joint
from handjax.losses import elementwise, hmr
from handjax.mano.hand_model import HandModel
from handjax.nn import backbones, mano_head
from handjax.nn.mano_head import ManoHead, ManoParameters, MeanParameters, Posed
from handjax.nn.metaformer import torch_linear_init
from handjax.nn.ops.convolutions import gelu
from handjax.nn.ops.image import IMAGENET_MEAN, IMAGENET_STD, middle_columns, normalised
from handjax.nn.pose_discriminator import PoseDiscriminator
from handjax.types import AnyArray, Batch, HandOutput, Paper, Variables

PAPER = Paper(
    name="HaMeR",
    title="Reconstructing Hands in 3D with Transformers",
    url="https://geopavlakos.github.io/hamer",
    equations={
        "mano": "L_mano, squared error of the parameters",
        "3D": "L_3D, L1 of the 3-D joints",
        "2D": "L_2D, L1 of the projected joints",
        "adv": "L_adv, what the discriminator's scores lack to 1",
    },
)
QUERIES = ("zero", "mean")


class Prediction(NamedTuple):
    """The hand in its three forms."""

    parameters: ManoParameters
    posed: Posed
    output: HandOutput


class Model(nn.Module):
    """Image to hand; the fields are `config.model`."""

    backbone: str
    backbone_drop_path: float
    # Decoder.
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    decoder_head_dim: int
    decoder_mlp: int
    query: str  # what the query token is made of: QUERIES
    # Hand.
    head_init: str  # mano_head.INITS
    joints: str  # mano_head.JOINTS
    root: str  # that outputs are relative to: config.data.root
    reduction: str  # hmr_losses.REDUCTIONS
    remat: bool = False  # a vision transformer stores less and computes more
    remat_policy: str = "nothing"  # what it stores all the same: nn.remat.POLICIES
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build backbone, decoder, heads and discriminator."""
        if self.query not in QUERIES:
            raise UserError(
                f"config.model.query={self.query!r} is not one of {', '.join(QUERIES)}."
            )
        dtype = jnp.dtype(self.dtype)
        options: dict[str, Any] = {}
        if self.remat:
            options = dict(remat=True, remat_policy=self.remat_policy)
        self.image_encoder = backbones.build(
            self.backbone,
            drop_path_rate=self.backbone_drop_path,
            dtype=dtype,
            **options,
        )
        self.decoder = Decoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            self.decoder_head_dim,
            self.decoder_mlp,
            dtype,
        )
        self.mano_head = ManoHead(self.head_init)
        self.discriminator = PoseDiscriminator()

    def __call__(
        self,
        image: UInt8[AnyArray, "batch height width 3"]
        | Float[AnyArray, "batch height width 3"],
        *,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in square crops of 0..255 RGB."""
        return self.predict(image, train=train).output

    def predict(self, image: Any, *, train: bool = False) -> Prediction:
        """Predict as `__call__`, and return the parameters and posed hand, too."""
        mean = MeanParameters(**self.get_variable("constants", "mean"))
        maps = self.image_encoder(
            normalised(
                middle_columns(image),
                IMAGENET_MEAN,
                IMAGENET_STD,
                "rgb",
                jnp.dtype(self.dtype),
            ),
            train=train,
        )
        batch, _, _, channels = maps["final"].shape
        patches = maps["final"].reshape(batch, -1, channels)
        numbers = jnp.concatenate(mean) if self.query == "mean" else jnp.zeros(1)
        query = jnp.broadcast_to(numbers[None], (batch, numbers.size))
        parameters = self.mano_head(self.decoder(query, patches), mean)
        hand = HandModel(**self.get_variable("constants", "hand"))
        posed = mano_head.posed(hand, parameters, joints=self.joints)
        output = mano_head.hand_output(
            posed, root=root_joint(self.root), size_px=image.shape[1]
        )
        return Prediction(parameters, posed, output)

    def discriminate(
        self,
        hand_pose: Float[AnyArray, "batch joint 3 3"],
        betas: Float[AnyArray, "batch beta"],
    ) -> Float[Array, "batch score"]:
        """Score hands: 1 is real."""
        return self.discriminator(hand_pose, betas)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model and its mean."""
        mano_head.keep_hand(self, hand.arrays())
        parameters, _, output = self.predict(batch.image)
        self.discriminate(parameters.hand_pose, parameters.betas)
        return output


# --- Decoder -----------------------------------------------------------------


class Decoder(nn.Module):
    """One token that reads the patches, layer after layer.

    With one token, self-attention has nothing to choose from: its queries and keys get
    no gradient. They are kept because published weights have them.
    """

    dim: int
    depth: int
    heads: int
    head_dim: int
    mlp: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch number"],
        patches: Float[Array, "batch patch channel"],
    ) -> Float[Array, "batch dim"]:
        """Return the token after the last layer, which is not normalised."""
        position = self.param(
            "position", nn.initializers.normal(1.0), (1, 1, self.dim)
        ).astype(self.dtype)
        token = self._dense(self.dim, "embed")(query[:, None]) + position
        for i in range(self.depth):
            name = f"layer{i}"
            normal = self._norm(f"{name}_norm_self")(token)
            q, k, v = self._projected(normal, 3, f"{name}_self_qkv")
            token = token + self._attended(q, k, v, f"{name}_self_out")
            normal = self._norm(f"{name}_norm_cross")(token)
            (q,) = self._projected(normal, 1, f"{name}_cross_q")
            k, v = self._projected(patches, 2, f"{name}_cross_kv")
            token = token + self._attended(q, k, v, f"{name}_cross_out")
            hidden = self._norm(f"{name}_norm_mlp")(token)
            hidden = gelu(self._dense(self.mlp, f"{name}_mlp_in")(hidden))
            token = token + self._dense(self.dim, f"{name}_mlp_out")(hidden)
        return token[:, 0]

    def _projected(
        self, x: Float[Array, "batch token channel"], count: int, name: str
    ) -> list[Float[Array, "batch token head dim"]]:
        """Compute `count` projections by one linear layer, split into heads."""
        wide = count * self.heads * self.head_dim
        packed = self._dense(wide, name, use_bias=False)(x)
        packed = packed.reshape(*x.shape[:2], count, self.heads, self.head_dim)
        return [packed[:, :, i] for i in range(count)]

    def _attended(
        self,
        q: Float[Array, "batch query head dim"],
        k: Float[Array, "batch token head dim"],
        v: Float[Array, "batch token head dim"],
        name: str,
    ) -> Float[Array, "batch query channel"]:
        """Compute softmax(q k / sqrt(dim)) v in each head, then a linear layer."""
        mixed = jax.nn.dot_product_attention(q, k, v)
        mixed = mixed.reshape(*q.shape[:2], self.heads * self.head_dim)
        return self._dense(self.dim, name)(mixed)

    def _dense(self, features: int, name: str, *, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=torch_linear_init,
            name=name,
        )

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(
            epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=name
        )


# --- Training ----------------------------------------------------------------


def stages(config: Any) -> tuple[Stage, ...]:
    """Return one stage that trains everything.

    Raises:
        UserError: `config.model.root` is not the root of the data.
    """
    check_root(config)
    return (
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="",
            needs_image=True,
            real_poses=2,
        ),
    )


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the released terms; see `losses.hmr` for what they sum over.

    L1 of the joints relative to the wrist (HaMeR Eq. 3D) and of their projections in
    units of the crop (HaMeR Eq. 2D); squared error of the rotation matrices and of the
    betas (HaMeR Eq. mano); what the discriminator thinks of them (HaMeR Eq. adv), and
    its own loss.
    """
    image = jnp.asarray(batch.image)
    (parameters, posed, output), updates = model.apply(
        variables,
        image,
        train=True,
        method="predict",
        mutable=["batch_stats"],
        rngs=rngs,
    )
    terms = hmr.terms(
        parameters,
        posed,
        batch,
        crop_size=image.shape[1],
        reduction=model.reduction,
    )
    terms |= hmr.adversarial_terms(
        model, variables, parameters, batch.real_pose, batch.real_betas
    )
    error = elementwise.mean_distance(
        output.vertices, batch.vertices, example_valid=jnp.asarray(batch.vertices_valid)
    )
    return terms, {"mm": 1000 * error}, dict(updates)


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image."""
    return model.apply(variables, batch.image)


_PARTS = {
    "image_encoder": "backbone",
    "decoder": "decoder and heads",
    "mano_head": "decoder and heads",
    "discriminator": "discriminator",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
