"""Hands from texts: the same synthesizer, told words instead of an image."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_mmhmr import drawn, load_config, posed_batch, quick, rngs

from handjax.checkpoints import workdir
from handjax.data.poses import Letters, letters_in_order
from handjax.mano import model_files
from handjax.models import mmhmr
from handjax.models.mmhmr import losses
from handjax.training import step as train_state


def text_batch(model, size=4):
    """Hands and the number of a letter for each."""
    ids = np.arange(size, dtype=np.int32)[:, None] % len(model.labels)
    return posed_batch(size)._replace(image=None, text=ids)


def built_of_texts(**fields):
    config = load_config("smoke,text")
    config.model.update(fields)
    model = workdir.build_model(mmhmr, config)
    batch = text_batch(model)
    init = lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")  # noqa: E731
    return config, model, batch, jax.eval_shape(init)


def test_a_model_of_texts_has_no_parts_for_images():
    config, _, _, shapes = built_of_texts()
    assert set(shapes["params"]) == {"tokenizer", "synthesizer", "text_encoder"}
    assert "pose" not in shapes["params"]["synthesizer"]
    assert set(config.stages.mesh.losses) == {"tokens", *losses.TEXT_TERMS}
    first, second = mmhmr.stages(config)
    assert not (first.needs_image or second.needs_image)
    trained = [path for path in train_state.flat(shapes["params"])]
    assert any(re.search(second.trainable, path) for path in trained)
    assert not re.search(second.trainable, "tokenizer/encoder/first/kernel")


def test_clips_tower_is_not_trained():
    config, _, _, shapes = built_of_texts(text="clip_text_test")
    trainable = mmhmr.stages(config)[1].trainable
    trained = {
        path.split("/")[0]
        for path in train_state.flat(shapes["params"])
        if re.search(trainable, path)
    }
    assert trained == {"synthesizer"}
    assert "resblocks_0" in shapes["params"]["text_encoder"]


def test_texts_need_labelled_poses():
    config = load_config("smoke,text")
    config.stages.mesh.data = "poses"
    with pytest.raises(
        ValueError, match=r"mesh\.data='poses' has no texts.*'labelled_"
    ):
        mmhmr.stages(config)


def test_texts_are_scored_and_their_hands_drawn():
    """Among the surest 5 % of the codes, by the key, a hand of each text."""
    _, model, batch, shapes = built_of_texts(steps=2)
    variables = drawn(shapes)

    @quick
    def hands(key):
        return model.apply(variables, batch.text, key, 3, method="hypotheses")

    found = hands(jax.random.key(0))
    assert found.vertices.shape == (4, 3, 778, 3) and found.joints2d is None
    np.testing.assert_array_equal(found.vertices, hands(jax.random.key(0)).vertices)
    assert np.abs(found.vertices - hands(jax.random.key(1)).vertices).max() > 0
    assert (np.diff(found.confidence, axis=1) <= 0).all()
    np.testing.assert_allclose(found.joints3d[:, :, 9], 0, atol=1e-6)


def test_a_text_changes_the_scores_and_padding_does_not():
    _, model, batch, shapes = built_of_texts()
    variables = drawn(shapes)
    tokens = jnp.zeros((4, model.num_tokens), jnp.int32)

    @quick
    def logits(ids, valid):
        seen = model.apply(variables, ids, method="encode_condition")
        context = jnp.concatenate([seen.context, 9.0 + seen.context], axis=1)
        valid = jnp.stack([jnp.ones(4, bool), valid], axis=1)
        seen = seen._replace(context=context, context_valid=valid)
        return model.apply(variables, seen, tokens, tokens == 0, method="score")

    hidden, shown = jnp.zeros(4, bool), jnp.ones(4, bool)
    one = logits(batch.text, hidden)
    assert np.abs(one[0] - one[1]).max() > 1e-3
    assert np.abs(one - logits(batch.text, shown)).max() > 1e-3
    plain = quick(
        lambda: model.apply(
            variables,
            model.apply(variables, batch.text, method="encode_condition"),
            tokens,
            tokens == 0,
            method="score",
        )
    )()
    np.testing.assert_allclose(one, plain, atol=1e-5)


def test_the_terms_of_a_text_are_of_the_true_shape():
    """A network that is sure of the true tokens has the tokenizer's own errors."""
    config, model, batch, shapes = built_of_texts()
    variables = drawn(shapes)
    terms, metrics, updates = quick(functools.partial(losses.text_loss, model))(
        variables, batch, rngs()
    )
    assert set(terms) == set(config.stages.mesh.losses) and not updates
    assert set(metrics) == {"token_accuracy", "masked"}
    assert all(np.isfinite(value) for value in terms.values())
    larger = batch._replace(betas=batch.betas + 2)
    other, *_ = quick(functools.partial(losses.text_loss, model))(
        variables, larger, rngs()
    )
    assert float(other["joints3d"]) != float(terms["joints3d"])
    for name in ("tokens", "global_orient", "hand_pose"):
        np.testing.assert_allclose(other[name], terms[name], rtol=1e-6)


def test_batches_of_a_split_draw_other_hands():
    _, model, batch, shapes = built_of_texts(steps=1)
    predict = quick(functools.partial(losses.predict_text, model, drawn(shapes)))
    first, later = predict(batch), predict(batch._replace(index=batch.index + 4))
    assert first.vertices.shape == (4, 778, 3) and first.logits is None
    assert np.abs(first.vertices - later.vertices).max() > 0


def test_the_stage_learns_letters_and_leaves_the_tokenizer_alone():
    """From rows of the source to a lower loss, as the trainer does it."""
    config, model, _, shapes = built_of_texts(layers=1)
    file = model_files.load()
    letters_as = Letters(np.arange(15, dtype=np.int32)[:, None], 30.0)
    (batch,) = letters_in_order(
        file,
        split="train",
        num=8,
        batch_size=8,
        seed=0,
        root=9,
        crop_size=64,
        letters_as=letters_as,
    )
    stage, variables = mmhmr.stages(config)[1], drawn(shapes)
    options = config.stages.mesh
    options.schedule.update(name="constant", warmup_steps=0)
    frozen = jax.device_get(train_state.frozen(variables, stage))
    state = train_state.create(variables, stage, options, jax.random.key(1))
    step = quick(train_state.make_step(model, stage, options))
    history = []
    for _ in range(10):
        state, metrics = step(state, batch)
        history.append(float(metrics["loss"]))
    assert np.isfinite(history).all() and np.mean(history[-3:]) < np.mean(history[:3])
    for name, leaf in train_state.frozen(state.variables, stage).items():
        np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)
