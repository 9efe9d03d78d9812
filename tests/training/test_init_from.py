"""Runs that begin with converted weights, or with a whole earlier run."""

import json
import shutil
import types

import chex
import fake_family
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from handjax import conversion
from handjax.checkpoints.store import Checkpoints
from handjax.config import schema as configs
from handjax.conversion import directory
from handjax.distributed.sharding import make_mesh
from handjax.training import init_from, loop, resume
from handjax.training.run import Hooks, Run, Stop
from handjax.types import HandOutput

BACKBONE, OTHER = "small", "large"
ENCODERS = {BACKBONE: tiny.Backbone(8), OTHER: tiny.Backbone(9)}


class _Encoded(nn.Module):
    """A backbone and a linear head."""

    backbone: str = BACKBONE
    dtype: str = "float32"

    def setup(self):
        self.image_encoder = ENCODERS[self.backbone].clone()
        self.head = nn.Dense(778 * 3)

    def __call__(self, image, *, train=False):
        image = jnp.asarray(image, jnp.float32) / 255
        maps = self.image_encoder(image, train=train)
        vertices = self.head(maps["final"].mean((1, 2))).reshape(-1, 778, 3)
        return HandOutput(vertices=vertices, joints3d=vertices[:, :21])

    def init_all(self, batch, hand):
        self.put_variable("constants", "faces", jnp.asarray(hand.faces))
        return self(batch.image)


class _OneStage:
    """A family as SimpleHand: one stage that trains everything."""

    Model = _Encoded

    @staticmethod
    def stages(config):
        del config
        return (fake_family.stages(None)[1]._replace(trainable="", check=None),)


def _run(workdir, source, **changes):
    config = fake_family.get_config()
    del config.stages.tokenizer
    config.model = dict(backbone=BACKBONE)
    config.stages.mesh.steps = 1
    config.init_from = str(source)
    config.update_from_flattened_dict(changes)
    workdir.mkdir(exist_ok=True)
    return Run(
        config=config,
        workdir=workdir,
        family=_OneStage,
        model=_Encoded(**config.model.to_dict()),
        hand=fake_family.HAND,
        hand_info={"name": "open", "sha256": "0"},
        example=fake_family.batch(2, (0,), crop=32),
        data=_Data32(),
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
        hooks=Hooks(),
        stop=Stop(None),
    )


class _Data32(fake_family.Data):
    def train(self, stage, batch_size, start_step):
        while True:
            yield fake_family.batch(batch_size, (start_step,), crop=32)


SOURCE = {"file": "x.pth", "sha256": "0"}
RECORD = {"schema": "handjax/conversion", "handjax": "0", "source": SOURCE}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A converted backbone: its directory and variables."""
    folder = tmp_path_factory.mktemp("converted") / "out"
    image = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(ENCODERS[BACKBONE].init)(jax.random.key(8), image)
    variables = jax.tree.map(lambda x: np.asarray(x) + 0.01, variables)
    result = conversion.Converted(variables, BACKBONE, "free", skipped={})
    directory.write(folder, result, RECORD, overwrite=False)
    return folder, variables


def _states(run):
    stage = run.family.stages(run.config)[0]
    store = Checkpoints(run.workdir, stage.name)
    try:
        return resume.initial_state(run, stage, 0, None, store)[0].variables
    finally:
        store.close()


def test_a_converted_backbone_becomes_the_image_encoder(tmp_path, encoder, capsys):
    source, expected = encoder
    run = _run(tmp_path / "w", source)
    assert init_from.first_stage(run) == 0
    variables = _states(run)
    said = capsys.readouterr().out
    number = len(jax.tree.leaves(expected))
    assert f"took the backbone {BACKBONE} ({number} arrays of x.pth) from" in said
    assert "licence: free" in said
    for collection, tree in expected.items():
        found = variables[collection]["image_encoder"]
        chex.assert_trees_all_equal(found, tree)


def test_training_goes_on_from_a_converted_backbone(tmp_path, encoder):
    source, expected = encoder
    variables, meta = loop.fit(_run(tmp_path / "w", source))
    assert meta["config"]["init_from"] == str(source)
    kernel = variables["params"]["image_encoder"]["Dense_0"]["kernel"]
    start = expected["params"]["Dense_0"]["kernel"]
    assert 0 < np.abs(kernel - start).max() < 0.01
    # A later start goes on from its own checkpoint.
    resumed, _ = loop.fit(_run(tmp_path / "w", source))
    chex.assert_trees_all_equal(resumed, variables)
    # A family with one stage can begin from a whole earlier run.
    run = _run(tmp_path / "v", tmp_path / "w")
    assert init_from.first_stage(run) == 0
    chex.assert_trees_all_equal(_states(run), variables)


def test_another_backbone_is_refused_with_both_names(tmp_path, encoder):
    changes = {"model.backbone": OTHER}
    run = _run(tmp_path / "w", encoder[0], **changes)
    with pytest.raises(ValueError, match=rf"is a {BACKBONE}, but .*{OTHER!r}"):
        loop.fit(run)


def test_a_backbone_with_other_entries_is_refused(tmp_path, encoder):
    shutil.copytree(encoder[0], tmp_path / "c")
    record = tmp_path / "c" / "conversion.json"
    record.write_text(record.read_text().replace(f'"{BACKBONE}"', f'"{OTHER}"'))
    changes = {"model.backbone": OTHER}
    run = _run(tmp_path / "w", tmp_path / "c", **changes)
    with pytest.raises(ValueError, match=r"does not fit this config: missing there"):
        loop.fit(run)


def test_a_converted_encoder_of_texts_becomes_the_models_own(tmp_path, capsys):
    theirs = {"params": {"embed": {"embedding": np.ones((3, 2), np.float32)}}}
    result = conversion.Converted(theirs, "words", "free", {}, part="text_encoder")
    directory.write(tmp_path / "out", result, RECORD, overwrite=False)
    run = _run(tmp_path / "w", tmp_path / "out")
    with pytest.raises(ValueError, match=r"is a words, but config\.model\.text="):
        init_from.first_stage(run)
    run.config.model.text = "words"
    assert init_from.first_stage(run) == 0
    mine = {"text_encoder": {"embed": {"embedding": np.zeros((3, 2))}}, "head": {}}
    mine["head"]["kernel"] = np.zeros(3)
    fresh = jax.tree.map(jnp.asarray, {"params": mine})
    found, _ = init_from.take_over(run, 0, fresh)
    assert float(found["params"]["text_encoder"]["embed"]["embedding"].min()) == 1
    assert float(found["params"]["head"]["kernel"].max()) == 0
    assert "took the encoder words (1 arrays of x.pth) from" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A converted model of `_OneStage`."""
    folder = tmp_path_factory.mktemp("converted")
    run = _run(folder / "unused", "")
    key = {"params": jax.random.key(3), "dropout": jax.random.key(4)}

    def init():
        return run.model.init(key, run.example, run.hand, method="init_all")

    variables = jax.device_get(jax.jit(init)())
    result = conversion.Converted(
        variables,
        BACKBONE,
        "free",
        skipped={},
        config=run.config,
        stage="mesh",
        step=7,
        hand_info=run.hand_info,
    )
    directory.write(folder / "out", result, RECORD, overwrite=False)
    return folder / "out", variables


def test_a_converted_model_is_the_start(tmp_path, whole, capsys):
    source, expected = whole
    run = _run(tmp_path / "w", source, seed=9)
    chex.assert_trees_all_equal(_states(run), expected)
    said = capsys.readouterr().out
    assert f"took fake with {BACKBONE} (x.pth, step 7) from {source}; licence:" in said
    run = _run(tmp_path / "w", source)
    hand = types.SimpleNamespace(faces=np.ones((1538, 3), np.int32))
    with pytest.raises(ValueError, match=r"another hand model \(constants/faces"):
        _states(run._replace(hand=hand))


def test_another_family_takes_the_backbone_of_a_model_alone(tmp_path, whole, capsys):
    source, expected = whole
    run = _run(tmp_path / "w", source, family="other", seed=9)
    assert init_from.first_stage(run) == 0
    found = _states(run)
    number = len(jax.tree.leaves([t.get("image_encoder") for t in expected.values()]))
    assert (
        f"took the backbone {BACKBONE} of a whole fake, and nothing else, ({number} "
        f"arrays of x.pth) from {source}"
    ) in capsys.readouterr().out
    for collection in ("params", "batch_stats"):
        parts = (tree[collection]["image_encoder"] for tree in (found, expected))
        chex.assert_trees_all_equal(*parts)
    head = found["params"]["head"]["kernel"]
    assert np.any(head != expected["params"]["head"]["kernel"])
    run = _run(tmp_path / "v", source, **{"family": "other", "model.backbone": OTHER})
    with pytest.raises(ValueError, match=rf"a fake with {BACKBONE}, but .*{OTHER!r}"):
        loop.fit(run)


def test_nothing_is_trained_inside_a_conversion(whole, tmp_path):
    with pytest.raises(ValueError, match=r"holds converted weights.*init_from="):
        init_from.refuse_converted(whole[0])
    init_from.refuse_converted(tmp_path)


def test_a_directory_with_nothing_in_it_is_refused(tmp_path):
    run = _run(tmp_path / "w", tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no checkpoint of stage 'mesh'; it has none"):
        loop.fit(run)


def test_configs_of_earlier_versions_are_read():
    old = fake_family.get_config().to_dict()
    old["train"]["init_from"] = old.pop("init_from")
    read = configs.from_json(json.dumps(old))
    assert not configs.difference(read, fake_family.get_config())
