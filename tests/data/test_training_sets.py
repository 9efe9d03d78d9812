"""A mixture of prepared data sets as a run sees it: found, filtered, counted, fed."""

import json
from fractions import Fraction

import numpy as np
import pytest
from miniatures import freihand, hamer_tars

from data_pipelines.loading.recipes import HAMER
from data_pipelines.preparation import job
from handjax.config import schema as configs
from handjax.config import variants
from handjax.config.files import load_config, override
from handjax.data import run_data
from handjax.errors import UserError
from handjax.family.stage import Stage
from handjax.mano import model_files
from handjax.training import launch

NAMES = ("freihand", "halpe", "interhand26m")
STAGE = Stage(
    name="mesh", loss_fn=None, predict_fn=None, trainable="", needs_image=True
)
POSES = Stage(
    name="poses", loss_fn=None, predict_fn=None, trainable="", needs_image=False
)
HAND = model_files.load()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three of the ten, from HaMeR's tars; each has four hands, one with a bad fit.

    Beside them lies FreiHAND as published, four pictures of one hand, to evaluate on.
    """
    root = tmp_path_factory.mktemp("mixture")
    for name in NAMES:
        hamer_tars.make(root / "source" / name, left=name != "freihand")
        job.prepare(name, root / "source" / name, root / "sets" / name)
    freihand.make(root / "files", frames=1, test=1)
    job.prepare("freihand", root / "files", root / "own")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mixed(prepared, **shares):
    """A config of HaMeR's mixture, without the seven data sets that are not there."""
    config = configs.base()
    variants.train_on(config, HAMER)
    for name in HAMER.shares:
        if name not in NAMES:
            config.data.mixture.shares[name] = 0.0
    config.data.mixture.shares.update(shares)
    config.data.mixture.dir = str(prepared / "sets")
    config.data.dir = str(prepared / "own")
    config.data.crop_size, config.data.threads = 32, 0
    config.stages.mesh = configs.stage(steps=10, batch_size=12, losses={})
    config.stages.poses = configs.stage(
        steps=10, batch_size=12, losses={}, data="poses"
    )
    return config


def test_a_run_says_what_it_trains_on(prepared):
    opened = run_data.open_data(mixed(prepared), HAND)
    said = opened.describe()
    assert "freihand (4 train), weight 0.25; " in said and "mtc" not in said
    assert f"evaluated on freihand in {prepared / 'own'} (1 test, 4 train)" in said
    assert opened.describe_filters([STAGE]) == [
        "filters: joints under confidence 0.3 are unknown, no pose where a beta is "
        "beyond 3, 5 known joints or more, fit loss under 31,000, no pose 20 mm "
        "off its joints, unknown betas are zero",
        *(
            f"  {name}: 3 of 4 records; left out: 1 fit loss of 31,000 or more; kept "
            "with: 3 joints under confidence 0.3"
            for name in NAMES
        ),
    ]
    assert opened.describe_filters([POSES]) == []


def test_epochs_are_those_of_what_the_loader_gives(prepared):
    config = mixed(prepared)
    opened = run_data.open_data(config, HAND)
    told = opened.drawn(STAGE, 120)
    assert [(each.name, each.examples, each.size) for each in told] == [
        ("freihand", 55, 3), ("halpe", 11, 3), ("interhand26m", 54, 3)
    ]  # fmt: skip
    assert opened.drawn(POSES, 120) == []
    batches = opened.train(STAGE, 12, 0)
    seen = np.concatenate([next(batches).index for _ in range(10)])
    # The second sample, whose fit is bad, is left out; each other comes as often.
    assert set(seen) == {0, 1, 3}
    assert np.ptp(np.bincount(seen)[[0, 1, 3]]) <= 3


def test_a_run_goes_on_with_the_batch_that_follows(prepared):
    config = mixed(prepared)
    whole = run_data.open_data(config, HAND).train(STAGE, 12, 0)
    expected = [next(whole) for _ in range(6)][-1]
    got = next(run_data.open_data(config, HAND).train(STAGE, 12, 5))
    for name, x, y in zip(expected._fields, expected, got, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_annotations_reach_the_batch_as_flags(prepared):
    """2-D alone, and MANO without a mesh or a camera, left and right."""
    config = mixed(prepared)
    batch = next(run_data.open_data(config, HAND).train(STAGE, 120, 0))
    flat = batch.index == 3
    assert not batch.mano_valid[flat].any() and not batch.joints3d_known[flat].any()
    assert not batch.vertices_valid.any(), "parameters are MANO's, the hand is not"
    assert batch.mano_valid[~flat].any() and batch.joints3d_known[~flat].any()
    assert batch.betas_valid[flat].all() and not batch.betas[flat].any()
    assert batch.joints2d_valid[flat].any() and not batch.root3d.any()
    unsure = batch.joints2d_confidence == np.float32(0.2)
    assert not unsure.any() and not batch.joints2d_valid[:, 5].any()
    assert set(batch.is_right) == {True, False}
    config.data.filters.neutral_betas = False
    batch = next(run_data.open_data(config, HAND).train(STAGE, 12, 0))
    np.testing.assert_array_equal(batch.betas_valid, batch.mano_valid)


def test_parameters_of_the_hand_model_of_the_run_give_meshes(prepared):
    config = mixed(prepared)
    batch = next(
        run_data.open_data(config, HAND._replace(name="mano")).train(STAGE, 120, 0)
    )
    np.testing.assert_array_equal(batch.vertices_valid, batch.mano_valid)
    joints3d = np.einsum(
        "jv,bvx->bjx", model_files.joint_regressor(HAND), batch.vertices
    )
    known = batch.vertices_valid
    np.testing.assert_allclose(joints3d[known], batch.joints3d[known], atol=1e-5)


def test_data_sets_of_other_directories_are_added(prepared):
    """Two of one name are told apart by where they are."""
    config = mixed(prepared, halpe=0.0)
    config.data.mix = {str(prepared / "own"): 0.5}
    told = run_data.open_data(config, HAND).drawn(STAGE, 100)
    assert [(each.name, each.examples, each.size) for each in told] == [
        (str(prepared / "sets" / "freihand"), 25, 3),
        ("interhand26m", 25, 3),
        (str(prepared / "own"), 50, 4),
    ]


def test_a_dry_run_shows_the_mixture_that_flags_name(prepared, cache, capsys):
    """Any family, any data sets that `data_pipelines.prepare` makes."""
    flags = {
        "mixture.dir": prepared / "sets",
        "mixture.shares.freihand": 0.75,
        "mixture.shares.halpe": 0.25,
        "filters.max_fit_loss": 31_000,
        "name": "freihand",
        "dir": prepared / "own",
    }
    config = load_config("configs/hamer.py:smoke")
    config = override(
        config, [(f"data.{key}", str(value)) for key, value in flags.items()]
    )
    launch.dry_run(config, None)
    out, stage = capsys.readouterr().out, config.stages.mesh
    total = stage.steps * stage.batch_size
    assert f"{prepared / 'sets' / 'halpe'} (4 train), weight 0.25; evaluated on" in out
    assert f"stage mesh sees {total:,} examples:\n" in out
    assert f"75.0 %  {total * 3 // 4:,} of freihand (" in out
    assert f"25.0 %  {total // 4:,} of halpe (" in out and "epochs of 3)" in out
    assert "halpe: 3 of 4 records; left out: 1 fit loss of 31,000 or more" in out
    assert not cache.exists()


def test_one_data_set_needs_no_mixture(prepared):
    config = mixed(prepared, **dict.fromkeys(NAMES, 0.0))
    opened = run_data.open_data(config, HAND)
    assert opened.describe() == f"freihand in {prepared / 'own'} (1 test, 4 train)"
    told = opened.drawn(STAGE, 100)
    assert [(each.name, each.epochs) for each in told] == [("freihand", 25)]
    config.data.update(name="synthetic", dir="")
    opened = run_data.open_data(config, HAND, create=False)
    assert "not rendered yet" in opened.describe()
    assert [each.epochs for each in opened.drawn(STAGE, 100)] == [0.005]


def test_what_filters_find_is_kept_for_the_next_run_but_not_by_a_dry_one(
    prepared, cache
):
    config = mixed(prepared)
    run_data.open_data(config, HAND, create=False).drawn(STAGE, 1)
    assert not cache.exists()
    run_data.open_data(config, HAND).drawn(STAGE, 1)
    assert len(list((cache / "selections").iterdir())) == 3


# --- what can go wrong --------------------------------------------------------------


def test_missing_data_sets_are_named_together(prepared):
    opened = run_data.open_data(mixed(prepared, mtc=0.1, rhd=0.05), HAND)
    with pytest.raises(FileNotFoundError) as error:
        opened.drawn(STAGE, 1)
    lines = str(error.value).splitlines()
    assert lines[0] == "Data sets to train on are missing (2). Make them with:"
    out = prepared / "sets" / "mtc"
    assert lines[1] == (
        f"  python -m data_pipelines.prepare mtc --source DIR --out {out}"
    )
    assert "mixture.shares.mtc=0 trains without one" in lines[3]
    # Whoever only evaluates needs none of them.
    assert len(list(opened.evaluation(STAGE))) == 1


def test_a_data_set_that_nobody_publishes_is_no_matter_of_preparing(prepared):
    config = mixed(prepared)
    config.data.mix = {str(prepared / "mine"): 1.0}
    with pytest.raises(FileNotFoundError, match=r"shards .* in .*mine$"):
        run_data.open_data(config, HAND).drawn(STAGE, 1)


def test_a_name_that_is_unknown_is_answered_with_a_near_one():
    config = configs.base().lock()
    with pytest.raises(UserError, match=r"Did you mean .*freihand'"):
        override(config, [("data.mixture.shares.freihnd", "1")])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mixture.dir": ""}, r"mixture\.shares names freihand, .*mixture\.dir=DIR"),
        ({"mixture.shares.rhd": -1.0}, r"shares\.rhd=-1\.0 must be a number of at"),
        ({"mix": {"elsewhere": 0.0}}, r"mix\['elsewhere'\]=0\.0 must be a positive"),
        ({"filters.min_joints": -1}, r"data\.filters\.min_joints=-1 must be"),
        ({"filters.min_joints": 22}, r"leave nothing of split 'train' of .*freihand"),
    ],
)
def test_what_makes_no_sense_is_said(prepared, changes, message):
    config = mixed(prepared)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        setattr(config.data[group] if group else config.data, name, value)
    with pytest.raises(ValueError, match=message):
        run_data.open_data(config, HAND).drawn(STAGE, 1)


def test_the_data_set_that_is_evaluated_may_be_missing(prepared):
    config = mixed(prepared)
    config.data.dir, config.data.name = "", "dexycb"
    with pytest.raises(
        FileNotFoundError, match=r"mixture\.dir=.* no data set 'dexycb'"
    ):
        run_data.open_data(config, HAND)


def test_the_recipe_stands_in_the_config_of_a_run():
    config = configs.base()
    variants.train_on(config, HAMER)
    again = configs.from_json(configs.to_json(config))
    assert configs.difference(config, again) == []
    shares = json.loads(configs.to_json(config))["data"]["mixture"]["shares"]
    assert sum(Fraction(str(share)) for share in shares.values()) == 1
    config.data.mixture.shares.halpe = 0.0
    assert len(configs.difference(config, again)) == 1
