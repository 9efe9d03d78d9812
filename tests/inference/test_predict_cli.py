import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jsonschema
import ml_collections
import numpy as np
import pytest
import trimesh
from PIL import Image
from places import ROOT

from data_pipelines.synthetic.records import Generator
from handjax import predict
from handjax.family import hypotheses
from handjax.geometry.skeleton import Skeleton
from handjax.inference import output_files, photos
from handjax.inference.predictor import HandPredictor
from handjax.mano import model_files
from handjax.types import HandOutput

FILE = model_files.load("open")
SCHEMA = json.loads((ROOT / "handjax/assets/prediction.schema.json").read_text())
TEMPLATE = np.asarray(FILE.v_template, np.float32)
CONFIG = ml_collections.ConfigDict(
    dict(data=dict(crop_size=64, box_scale=1.25, root="middle_mcp"))
)


class FlatHand:
    """A "model" that sees the same flat hand in every crop."""

    def apply(self, variables, images):
        size = len(images)
        vertices = jnp.broadcast_to(TEMPLATE - TEMPLATE[:1], (size, 778, 3))
        joints3d = vertices[:, :21]
        joints2d = 32 + 300 * joints3d[..., :2]
        logits = jnp.zeros((size, 4, 5)).at[:, :, 2].set(3.0)
        indices = jnp.full((size, 4), 2)
        return HandOutput(vertices, joints3d, joints2d, logits, indices)


class ManyHands(FlatHand):
    """The flat hand, and by its other method hands that are more or less bent."""

    def hypotheses(self, image, key, count):
        """There is such a method; `apply` calls it."""

    def apply(self, variables, images, *, method="__call__", key=None, count=0):
        flat = super().apply(variables, images)
        if method == "__call__":
            return flat._replace(confidence=jnp.full(len(images), 0.75))

        def one(key):
            bend = jax.random.normal(key, (len(images), 1, 1)) * flat.joints3d[..., :1]
            return flat._replace(
                joints3d=flat.joints3d + 0.2 * bend * jnp.array([[[0.0, 0, 1]]]),
                confidence=jax.random.uniform(key, (len(images),)),
            )

        return hypotheses.draw(one, key, count)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the command on a stand-in for the trained model; returns the exit code."""

    def load(arguments, batch_size):
        return HandPredictor(
            CONFIG,
            ManyHands() if arguments.seed == 5 else FlatHand(),
            {"constants": {"faces": np.asarray(FILE.faces)}},
            batch_size=batch_size,
            name="fake",
        )

    monkeypatch.setattr(predict, "_load", load)
    monkeypatch.delenv("HANDJAX_HAND_LANDMARKER", raising=False)

    def run(photo, *more):
        output = tmp_path / "out"
        return predict.main([str(photo), "--workdir=w", f"--output={output}", *more])

    return run


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "photos" / "hand.jpg"
    path.parent.mkdir()
    Image.fromarray(rng.integers(0, 255, (90, 120, 3), np.uint8)).save(path)
    return path


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def test_one_photo_gives_json_overlay_and_meshes(command, photo, tmp_path, capsys):
    assert command(photo, "--box=20,10,100,80", "--left") == 0
    out = tmp_path / "out"
    assert names(out) == ["hand.json", "hand_0.glb", "hand_0.obj", "hand_overlay.png"]
    said = json.loads((out / "hand.json").read_text())
    assert said["schema"] == "handjax/prediction" and said["schema_version"] == 1
    assert said["photo"] == {"file": "hand.jpg", "width": 120, "height": 90}
    assert said["camera"]["source"] == "assumed"
    assert said["camera"]["intrinsics"][0][0] == 150.0
    assert said["units"]["3d"] == "metres" and len(said["joint_names"]) == 21
    (hand,) = said["hands"]
    assert hand["side"] == "left" and hand["box_source"] == "given"
    assert np.shape(hand["vertices"]) == (778, 3)
    assert np.shape(hand["joints2d"]) == (21, 2)
    assert hand["token_indices"] == [2, 2, 2, 2] and 0.8 < hand["confidence"] < 0.9
    # The mesh files hold the JSON's hand, in glTF axes.
    mesh = trimesh.load(out / "hand_0.glb").geometry["left_hand_0"]
    placed = np.array(hand["vertices"]) + hand["translation"]
    np.testing.assert_allclose(mesh.vertices, placed * [1, -1, -1], atol=2e-6)
    with Image.open(out / "hand_overlay.png") as picture:
        assert picture.size[1] > 400
    assert "left hand: given box, confidence 0.8" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--hypotheses=2", "--seed=5"]])
def test_the_json_is_as_its_schema_says(command, photo, tmp_path, more):
    assert command(photo, "--box=20,10,100,80", "--left", *more) == 0
    report = json.loads((tmp_path / "out" / "hand.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert list(report["faces"]) == ["left"] and len(report["faces"]["left"]) == 1538
    for key in report["hands"][0]:
        wrong = json.loads(json.dumps(report))
        del wrong["hands"][0][key]
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate(wrong, SCHEMA)


def test_a_body_is_named_so_and_has_no_side():
    model, constants = FlatHand(), {"constants": {"faces": np.asarray(FILE.faces)}}
    predictor = HandPredictor(CONFIG, model, constants, name="fake")
    hand = predictor(np.zeros((60, 80, 3), np.uint8), box_px=(10, 10, 50, 50))
    body = hand._replace(skeleton=Skeleton(("pelvis",), (), {"pelvis": 0}))
    assert (output_files.named(hand), output_files.side(hand)) == (
        "right hand",
        "right",
    )
    assert (output_files.named(body), output_files.side(body)) == ("body", None)


def test_hypotheses_are_written_drawn_and_said(command, photo, tmp_path, capsys):
    assert command(photo, "--box=20,10,100,80", "--hypotheses=3", "--seed=5") == 0
    out = tmp_path / "out"
    said = json.loads((out / "hand.json").read_text())
    assert "1000 sqrt(sum w |p - mean p|^2)" in said["frames"]["joint_uncertainty_mm"]
    (hand,) = said["hands"]
    assert hand["confidence"] == 0.75  # as the model states it
    drawn = hand["hypotheses"]
    sure = [other["confidence"] for other in drawn["hands"]]
    assert len(sure) == 3 and sure == sorted(sure, reverse=True)
    weights = [other["weight"] for other in drawn["hands"]]
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    joints3d = np.array([other["joints3d"] for other in drawn["hands"]])
    rooted = joints3d - joints3d[:, 9:10]
    mean = np.average(rooted, axis=0, weights=weights)
    far = np.average(((rooted - mean) ** 2).sum(axis=-1), axis=0, weights=weights)
    np.testing.assert_allclose(
        drawn["joint_uncertainty_mm"], 1e3 * np.sqrt(far), atol=0.02
    )
    assert max(drawn["joint_uncertainty_mm"]) > 1
    assert np.shape(drawn["hands"][0]["vertices"]) == (778, 3)
    assert "3 hypotheses, joints uncertain by " in capsys.readouterr().out
    with Image.open(out / "hand_overlay.png") as picture:
        with_panel = picture.size[0]
    assert command(photo, "--box=20,10,100,80", "--seed=5") == 0
    said = json.loads((out / "hand.json").read_text())
    assert said["hands"][0]["hypotheses"] is None
    with Image.open(out / "hand_overlay.png") as picture:
        assert picture.size[0] < with_panel


def test_hypotheses_of_a_family_without_any_are_refused(command, photo, capsys):
    assert command(photo, "--hypotheses=3") == 2
    said = capsys.readouterr().err
    assert "hypotheses=3: 'FlatHand' gives one answer to an image" in said


def test_without_a_detector_the_middle_square_is_used_and_said(
    command, photo, tmp_path, capsys
):
    assert command(photo, "--detector=none", "--intrinsics=200,210,60,45") == 0
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert said["hands"][0]["box_source"] == "whole_image"
    assert said["hands"][0]["box_px"] == [15, 0, 104, 89]
    assert said["camera"]["source"] == "given"
    assert "whole_image box" in capsys.readouterr().out


def test_without_box_the_detector_finds_the_hand_of_any_model(
    command, tmp_path, capsys
):
    """Generated picture 0 has one hand, a left one; its presence is near 1."""
    record = Generator(seed=77, image_size=224, left_fraction=1.0, max_turn=60)(
        "test", 0
    )
    path = tmp_path / "left.png"
    path.write_bytes(record["image"])
    assert command(path) == 0
    assert "handjax's detector" in capsys.readouterr().out
    (hand,) = json.loads((tmp_path / "out" / "left.json").read_text())["hands"]
    assert hand["side"] == "left" and hand["box_source"] == "detector"
    assert hand["presence"] > 0.9 and not hand["not_sure"]
    x0, y0, x1, y1 = hand["box_px"]
    middle = np.array([x0 + x1, y0 + y1]) / 2
    apart = np.abs(middle - record["bbox_center"]).max()
    assert apart < 0.15 * record["bbox_size"].max()


def test_photos_folders_and_patterns_are_taken_together(
    command, photo, tmp_path, capsys
):
    for name in ("b1.png", "b2.png", "c.jfif"):
        (photo.parent / name).write_bytes(photo.read_bytes())
    other = tmp_path / "more"
    other.mkdir()
    (other / "d.jpg").write_bytes(photo.read_bytes())
    pattern = str(photo.parent / "b?.png")
    arguments = [str(photo), pattern, str(photo.parent / "c.jfif"), str(other)]
    assert command(*arguments, str(photo), "--box=20,10,100,80") == 0
    written = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert written == {f"{stem}.json" for stem in ("hand", "b1", "b2", "c", "d")}
    assert "5/5 photos" in capsys.readouterr().out


def test_milliseconds_and_distance_are_said(command, photo, capsys):
    assert command(photo, "--box=20,10,100,80") == 0
    said = capsys.readouterr().out
    assert re.search(r"read \d+, detect \d+, network \d+, files \d+ ms", said)
    assert re.search(r"right hand: given box.* \d+\.\d\d m away", said)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://a.b/c.jpg", "curl -O"),
        ("clip.mp4", "ffmpeg -i"),
        ("x*.jpg", "no such"),
    ],
)
def test_what_is_no_photo_gets_the_command_that_helps(
    command, tmp_path, monkeypatch, capsys, name, words
):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").touch()
    assert command(name) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_folder_skips_bad_photos_and_says_so(command, photo, tmp_path, capsys):
    folder = photo.parent
    for i in range(9):
        (folder / f"p{i}.jpg").write_bytes(photo.read_bytes())
    (folder / "bad.jpg").write_bytes(photo.read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "hand.png").write_bytes(photo.read_bytes())
    assert command(folder, "--detector=none") == 1
    captured = capsys.readouterr()
    assert "2 of 13 photos were skipped" in captured.err
    assert captured.err.count("error:") == 2 and "bad.jpg: truncated" in captured.err
    assert "13/13 photos" in captured.out
    written = names(tmp_path / "out")
    # Photos that differ in the suffix alone do not overwrite each other.
    assert {"hand_jpg.json", "hand_png.json", "p8.json"} <= set(written)
    assert len(written) == 11 * 4 and not any("bad" in name for name in written)


def test_boxes_file_gives_hands_sides_and_cameras(command, photo, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps(
            {
                "hand.jpg": {
                    "hands": [
                        {"box": [5, 5, 60, 60]},
                        {"box": [60, 20, 110, 80], "side": "left"},
                    ],
                    "intrinsics": [300, 300, 60, 45],
                }
            }
        )
    )
    assert command(photo, f"--boxes={boxes}") == 0
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert [hand["side"] for hand in said["hands"]] == ["right", "left"]
    assert said["hands"][1]["files"] == ["hand_1.glb", "hand_1.obj"]
    assert said["camera"]["intrinsics"][0][0] == 300.0


@pytest.mark.parametrize(
    ("flags", "code", "match"),
    [
        (["--box=1,2,3"], 2, "x0,y0,x1,y1"),
        (["--box=200,10,300,80"], 1, "outside the photo of 120 x 90"),
        (["--box=50,10,50,80"], 1, "0 x 70 pixels"),
        (["--intrinsics=1,2,three,4"], 2, "fx,fy,cx,cy"),
        (["--intrinsics=0,2,3,4"], 2, "above 0"),
        (["--intrinsics=1.2,1.6,.5,.5"], 1, "in pixels of this photo"),
        (["--boxes=absent.json"], 2, "no such file"),
        (["--batch_size", "-3"], 2, "'-3' is not a whole number >= 1"),
        (["--batch_size=0"], 2, "'0' is not a whole number >= 1"),
        (["--hypotheses=-1"], 2, "'-1' is not a whole number >= 0"),
        (["--step=-1"], 2, "'-1' is not a whole number >= 0"),
        (["--seed=x"], 2, "'x' is not a whole number >= 0"),
        (["--min_score=nan"], 2, "'nan' is not a number >= 0 and <= 1"),
        (["--box=1,2,30,40", "--boxes=x.json"], 2, "leave one of them out"),
        (["--detector=mediapipe"], 2, "--detector=mediapipe"),
    ],
)
def test_wrong_flags_give_one_line_and_no_file(
    command, photo, tmp_path, capsys, flags, code, match
):
    assert command(photo, *flags) == code
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert len(errors) == 1 and match in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_box_may_begin_with_a_minus(command, photo, tmp_path):
    assert command(photo, "--box", "-5,-0.5,100,80") == 0
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert said["hands"][0]["box_px"] == [0, 0, 100, 80]


def test_entries_of_the_boxes_file_name_photos(command, photo, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    hand = {"box": [5, 5, 60, 60]}
    boxes.write_text(json.dumps({"hnad.jpg": hand}))
    for path in (photo, photo.parent):
        assert command(path, f"--boxes={boxes}") == 2
        said = capsys.readouterr().err
        assert "'hnad.jpg' names no photo. Did you mean 'hand.jpg'?" in said
    # The boxes of a folder serve for one of its photos.
    boxes.write_text(json.dumps({"hand.jpg": hand, "other.jpg": hand}))
    assert command(photo, f"--boxes={boxes}") == 0
    (photo.parent / "b.jpg").write_bytes(photo.read_bytes())
    assert command(photo.parent, f"--boxes={boxes}") == 2
    assert "'other.jpg' names no photo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"box": [1, 2, 30, 40], "sdie": "left"}, "'sdie'. Did you mean 'side'"),
        ({"boxes": [[1, 2, 30, 40]]}, "give a hand|a hand is"),
        ({"hands": [{"box": [1, 2, 3, 4]}], "side": "left"}, "unknown key 'side'"),
        ([{"box": [1, 2, 3, 4], "intrinsics": [9, 9, 1, 1]}], "key 'intrinsics'"),
    ],
)
def test_keys_that_mean_nothing_are_refused(command, photo, tmp_path, entry, match):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"hand.jpg": entry}))
    with pytest.raises(photos.PhotoError, match=match):
        photos.read_boxes(path)


def test_a_photo_of_a_few_pixels_is_named_so(command, tmp_path, capsys):
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 3)).save(path)
    assert command(path) == 1
    assert "dot.png: a photo of 1 x 3 pixels is too small" in capsys.readouterr().err


def test_pictures_of_other_formats_are_named(command, photo, capsys):
    (photo.parent / "a.HEIC").write_bytes(b"")
    (photo.parent / "notes.txt").write_bytes(b"")
    assert command(photo.parent) == 0
    assert "1 pictures are left out for their format, first a.HEIC" in (
        capsys.readouterr().err
    )
    photo.unlink()
    assert command(photo.parent) == 2
    assert "a.HEIC has to be converted" in capsys.readouterr().err


def test_no_two_photos_share_the_names_of_their_results():
    names_ = ["col.jpg", "col.png", "col_jpg.png", "COL_PNG.jpg", "a.jpg", "A.webp"]
    stems = predict._stems([Path(name) for name in names_])
    assert list(map(stems.get, map(Path, names_))) == [
        "col_jpg-2",
        "col_png-2",
        "col_jpg",
        "COL_PNG",
        "a_jpg",
        "A_webp",
    ]


def test_results_do_not_go_among_the_photos_or_below_a_file(
    command, photo, tmp_path, capsys
):
    again = predict.main([str(photo.parent), "--workdir=w", f"--output={photo.parent}"])
    assert again == 2 and "is the folder of the photos" in capsys.readouterr().err
    below = predict.main([str(photo), "--workdir=w", f"--output={photo}/out"])
    assert below == 2 and "hand.jpg is not a directory" in capsys.readouterr().err
    assert names(photo.parent) == ["hand.jpg"]


def test_flags_of_another_model_are_refused(photo, tmp_path, capsys):
    for flag in ("--batch_size=2", "--detector=none", "--step=3", "--tta=mean"):
        assert predict.main([str(photo), flag, f"--output={tmp_path}/o"]) == 2
        assert "is of a model of your own" in capsys.readouterr().err


def test_missing_photo_and_workdir_are_named(photo, tmp_path, capsys):
    missing = str(photo.parent / "none.jpg")
    for path, match in ((missing, "none.jpg"), (str(photo), "not a workdir")):
        code = predict.main([path, f"--workdir={tmp_path}", f"--output={tmp_path}/o"])
        assert code == 2 and match in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_full_disk_leaves_no_file_of_the_photo(
    command, photo, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_files, "write_json", full)
    assert command(photo, "--detector=none") == 1
    assert "could not be written" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


def test_help_needs_no_heavy_import():
    code = (
        "import sys, handjax.predict as p\n"
        "try: p.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'trimesh'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
