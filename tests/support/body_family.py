"""A parametric family as small as can be: mean colours of the picture to a posed mesh.

Nothing in it knows how many joints, bones or vertices there are.
"""

import flax.linen as nn
import jax.numpy as jnp

from handjax.config import schema as configs
from handjax.family.stage import Stage
from handjax.losses import hmr
from handjax.mano.hand_model import HandModel
from handjax.nn import mano_head
from handjax.types import Paper

PAPER = Paper(name="Body", title="A family of bodies for tests", url="", equations={})
ROOT = 0


class Model(nn.Module):
    dtype: str = "float32"

    def setup(self):
        self.head = mano_head.ManoHead("xavier")

    def __call__(self, image, *, train=False):
        return mano_head.hand_output(
            self.predict(image)[1], root=ROOT, size_px=image.shape[1]
        )

    def predict(self, image):
        mean = mano_head.MeanParameters(**self.get_variable("constants", "mean"))
        hand = HandModel(**self.get_variable("constants", "hand"))
        rows = jnp.mean(jnp.asarray(image, jnp.float32) / 255, axis=2)
        parameters = self.head(rows.reshape(len(rows), -1), mean)
        return parameters, mano_head.posed(hand, parameters)

    def init_all(self, batch, hand):
        arrays = {name: jnp.asarray(x) for name, x in hand.arrays().items()}
        mean = mano_head.mean_parameters(HandModel(**arrays))
        self.put_variable("constants", "hand", arrays)
        self.put_variable("constants", "faces", arrays["faces"])
        self.put_variable("constants", "mean", mean._asdict())
        return self(batch.image)


def loss(model, variables, batch, rngs):
    del rngs
    parameters, posed = model.apply(variables, batch.image, method="predict")
    terms = hmr.terms(
        parameters, posed, batch, crop_size=batch.image.shape[1], reduction="mean"
    )
    return terms, {}, {}


def stages(config):
    del config
    predict = Model.apply
    return (
        Stage(
            name="mesh",
            loss_fn=loss,
            predict_fn=lambda m, v, b: predict(m, v, b.image),
            trainable="",
            needs_image=True,
        ),
    )


def get_config(directory):
    config = configs.base()
    config.family = "body"
    config.hand.source = str(directory / "body.npz")
    config.data.update(
        name="bodies", dir=str(directory), root="pelvis", crop_size=32, box_scale=1.1
    )
    config.stages.mesh = configs.stage(
        steps=30, batch_size=8, losses=dict.fromkeys(hmr.KEYS, 1.0)
    )
    config.stages.mesh.optimizer.lr = 0.01
    config.data.augment.update(max_rotation=0.0, scale=(1.0, 1.0), center_jitter=0.0)
    config.train.update(log_every=1, num_images=2, compile_cache="")
    config.eval.batch_size = 8
    return config
