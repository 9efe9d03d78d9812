"""Texts in, files of hands out, by a model that only pretends."""

import json
from collections import namedtuple
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from handjax import text_to_mesh
from handjax.config.schema import base, stage
from handjax.family import hand_constants
from handjax.mano import model_files

FILE = model_files.load()
Drawn = namedtuple("Drawn", ["vertices", "joints3d", "indices", "confidence"])


def hypotheses(variables, ids, *, key, count, method):
    """Flat hands, as many millimetres aside as the label's number; some noise."""
    assert method == "hypotheses"
    noise = 1e-3 * jax.random.normal(key, (len(ids), count, 1, 1))
    aside = 1e-3 * ids[:, :, None, None] + noise
    vertices = variables["template"][None, None] + aside
    batch = len(ids), count
    return Drawn(
        vertices=vertices,
        joints3d=vertices[:, :, :21],
        indices=jnp.zeros((*batch, 64), jnp.int32),
        confidence=jnp.broadcast_to(jnp.linspace(0.9, 0.5, count)[None], batch),
    )


@pytest.fixture
def loaded(monkeypatch):
    """A workdir whose model knows two labels; returns its config."""
    config = base()
    config.family = "mmhmr"
    config.model = dict(condition="text", text="labels", labels=("fist", "point"))
    data = dict(tokenizer="poses", mesh="labelled_poses")
    for name, kind in data.items():
        config.stages[name] = stage(steps=1, batch_size=1, losses={}, data=kind)
    variables = {
        "template": jnp.asarray(FILE.v_template),
        "constants": {"faces": jnp.asarray(FILE.faces)},
    }
    skeleton = FILE.skeleton
    monkeypatch.setattr(hand_constants, "skeleton_of", lambda variables: skeleton)
    monkeypatch.setattr(
        "handjax.checkpoints.workdir.load_for_inference",
        lambda workdir, stage, step, change: (
            change(config),
            SimpleNamespace(apply=hypotheses),
            variables,
            stage or "mesh",
            7,
        ),
    )
    return config


def run(folder, *arguments):
    return text_to_mesh.main([*arguments, "--workdir=w", f"--output={folder}"])


def test_files_of_every_text_and_hand(tmp_path, loaded, capsys):
    assert run(tmp_path, "point", "fist", "--num=2") == 0
    out = capsys.readouterr().out
    assert "model: mmhmr, stage mesh, step 7" in out
    assert f"point: 2 hands (0.90, 0.50), {tmp_path / 'point.json'}" in out
    report = json.loads((tmp_path / "point.json").read_text())
    assert report["schema"] == "handjax/text_to_mesh" and report["text"] == "point"
    assert [hand["confidence"] for hand in report["hands"]] == [0.9, 0.5]
    hand = report["hands"][1]
    assert hand["files"] == ["point_1.glb", "point_1.obj"]
    assert len(hand["token_indices"]) == 64 and len(hand["joints3d"]) == 21
    mesh = trimesh.load(tmp_path / "point_1.obj", process=False)
    flipped = np.asarray(hand["vertices"]) * [1, -1, -1]
    np.testing.assert_allclose(mesh.vertices, flipped, atol=2e-6)
    assert cv2.imread(str(tmp_path / "point.png")).shape[1] > 2 * 224
    names = {path.name for path in tmp_path.iterdir()}
    assert {"fist.json", "fist.png", "fist_0.glb", "fist_1.obj"} < names


def test_the_seed_decides_and_texts_differ(loaded):
    def vertices(seed):
        make = text_to_mesh.TextToMesh.from_workdir("w", num=3, seed=seed)
        return np.stack([hands.vertices for hands in make(["fist", "point"])])

    np.testing.assert_array_equal(vertices(1), vertices(1))
    assert np.abs(vertices(1) - vertices(2)).max() > 1e-4
    assert vertices(1).shape == (2, 3, 778, 3)


def test_other_texts_models_and_numbers_are_refused(tmp_path, loaded, capsys):
    def error(*arguments):
        assert run(tmp_path / "out", *arguments) == 2
        return capsys.readouterr().err

    assert "'pinch' is not one of the labels" in error("fist", "pinch")
    assert "--num=0 hands of each text: it must be 1 or" in error("fist", "--num=0")
    assert "'tokenizer' (step 7) reads no texts yet" in error(
        "fist", "--stage=tokenizer"
    )
    loaded.model.condition = "image"
    assert "reads images, not texts; train a model" in error("fist")
    assert not (tmp_path / "out").exists()


def test_file_names_are_those_of_the_texts():
    texts = ["a", "A", "a hand, pointing!", "a/../b", "?", "日本"]
    expected = ["a", "A-2", "a_hand_pointing", "a_b", "text", "日本"]
    assert text_to_mesh.stems(texts) == expected
