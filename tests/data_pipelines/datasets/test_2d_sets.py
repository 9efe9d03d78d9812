"""Data sets with 2-D joints alone: scores, flags, duplicates, sides, missing frames."""

import json
import os

import numpy as np
import prepared
import pytest
from miniatures import asl, coco_wholebody, halpe, hands, hint, mpii_nzsl

from data_pipelines import datasets
from data_pipelines.datasets import asl as asl_converter
from data_pipelines.datasets import hint as hint_converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError

MAKERS = {
    "coco_wholebody": coco_wholebody,
    "halpe": halpe,
    "mpii_nzsl": mpii_nzsl,
    "hint": hint,
    "asl": asl,
}
SPLITS = {
    "mpii_nzsl": ["train", "test", "synth"],
    "hint": ["train_newdays", "test_visor", "test_ego4d_seq"],
}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """{name: (source, what its maker returned, prepared directory)}, made on demand."""
    made = {}

    def of(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            content = MAKERS[name].make(root / "source")
            splits = SPLITS.get(name, [])
            out = job.prepare(name, root / "source", root / "out", splits=splits)
            made[name] = root / "source", content, out
        return made[name]

    return of


def manifest(out, split):
    return job.read_manifest(out)["splits"][split]


def source_pixels(record):
    return record["crop_origin"] + record["joints2d"][:, :2] / record["crop_scale"]


def failure(name, root, tmp_path, split="train"):
    with pytest.raises(SourceError) as error:
        job.prepare(name, root, tmp_path / "out", splits=[split])
    return str(error.value)


@pytest.mark.parametrize("name", list(MAKERS))
def test_nothing_is_claimed_that_is_not_annotated(every, name):
    out = every(name)[2]
    for split in job.read_manifest(out)["splits"]:
        for record in prepared.records(out, split):
            flags = [value for key, value in record.items() if key.startswith("has_")]
            assert not any(flags)
            assert record["image"][:2] == b"\xff\xd8"


# --- COCO-WholeBody -----------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_points_keep_their_scores(every, split):
    """Trap: visibility is a score, and low ones are the reader's to drop."""
    _, made, out = every("coco_wholebody")
    records = prepared.records(out, split)
    assert len(records) == 3
    for record in records:
        photo, _, rest = record["key"].partition("#")
        person, side = rest.split()
        points = made[int(person), side == "right"]
        assert record["is_right"] == (side == "right")
        assert photo.startswith(f"{split}2017/")
        known = points[:, 2] > 0
        np.testing.assert_allclose(
            record["joints2d"][:, 2], points[:, 2].clip(0, 1), atol=1e-6
        )
        np.testing.assert_allclose(
            source_pixels(record)[known], points[known, :2], atol=1e-3
        )


def test_coco_hands_that_are_not_valid_are_dropped(every):
    """Trap: hands that are not annotated are zeros."""
    _, _, out = every("coco_wholebody")
    expected = {"no joint is known": 1, "not annotated": 2}
    assert manifest(out, "train")["dropped"] == expected


def test_coco_annotations_may_lie_in_their_folder(every, tmp_path):
    root = prepared.copy(every("coco_wholebody")[0], tmp_path / "source")
    (root / "annotations").mkdir()
    name = "coco_wholebody_train_v1.0.json"
    (root / name).rename(root / "annotations" / name)
    out = job.prepare("coco_wholebody", root, tmp_path / "out", splits=["train"])
    assert len(prepared.records(out)) == 3
    (root / "annotations" / name).unlink()
    message = failure("coco_wholebody", root, tmp_path / "2")
    assert f"{name}' is missing" in message and "annotations of COCO-Whole" in message


def test_coco_damage_is_named(every, tmp_path):
    root = prepared.copy(every("coco_wholebody")[0], tmp_path / "source")
    path = root / "coco_wholebody_train_v1.0.json"
    os.truncate(path, path.stat().st_size - 20)
    assert "element 2 cannot be read" in failure("coco_wholebody", root, tmp_path)
    path.write_text(json.dumps({"images": [], "annotations": [{"id": 1}]}))
    assert "lefthand_kpts" in failure("coco_wholebody", root, tmp_path)
    next((root / "val2017").glob("*.jpg")).unlink()
    assert "val2017.zip" in failure("coco_wholebody", root, tmp_path, "val")


# --- Halpe --------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_halpe_hands_are_the_last_42_points(every, split):
    """Traps: left before right; 1 is hidden, 0 is not annotated."""
    _, made, out = every("halpe")
    records = prepared.records(out, split)
    assert [record["is_right"] for record in records] == [False, True]
    for record in records:
        points = made[split, bool(record["is_right"])]
        known = points[:, 2] > 0
        assert record["joints2d"][:, 2].tolist() == known.tolist()
        np.testing.assert_allclose(
            source_pixels(record)[known], points[known, :2], atol=1e-3
        )
        assert record["occluded"][3] == 1 and record["occluded"][4] == 255
        assert set(np.delete(record["occluded"], [3, 4])) == {0}


def test_halpe_duplicates_and_people_without_points_are_dropped(every):
    """Traps: the same person under two numbers, annotations without keypoints."""
    train = manifest(every("halpe")[2], "train")
    expected = {"no points": 2, "not annotated": 2, "there already": 2}
    assert train["dropped"] == expected and train["examples"] == 8


def test_halpe_damage_is_named(every, tmp_path):
    root = prepared.copy(every("halpe")[0], tmp_path / "source")
    (root / halpe.FOLDERS["train"][0] / halpe.FOLDERS["train"][1]).unlink()
    assert "hico_20160224_det.tar.gz" in failure("halpe", root, tmp_path)
    people = {"images": [], "annotations": [{"id": 1, "keypoints": [1, 2]}]}
    (root / "halpe_train_v1.json").write_text(json.dumps(people))
    assert "136 keypoints" in failure("halpe", root, tmp_path)


# --- MPII + NZSL --------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS["mpii_nzsl"])
def test_mpii_nzsl_points_and_sides(every, split):
    """Traps: one photo as _l and as _r; points that are not known are zeros."""
    _, made, out = every("mpii_nzsl")
    records = prepared.records(out, split)
    assert len(records) == (4 if split == "synth" else 2)
    K = hands.camera(mpii_nzsl.WIDTH, mpii_nzsl.HEIGHT, 600.0)
    for record in records:
        hand = made[record["key"]]
        assert record["is_right"] == hand.is_right
        known = np.arange(21) != 7
        assert record["joints2d"][:, 2].tolist() == known.tolist()
        pixels = hands.project(hand.joints3d, K)
        np.testing.assert_allclose(
            source_pixels(record)[known], pixels[known], atol=1e-3
        )
    keys = [record["key"] for record in records]
    assert len(set(keys)) == len(keys)


def test_mpii_nzsl_hands_without_a_known_point_are_dropped(every):
    train = manifest(every("mpii_nzsl")[2], "train")
    assert train["dropped"] == {"no joint is known": 1}


def test_mpii_nzsl_rendered_hands_are_not_needed(every, tmp_path):
    import shutil

    root = prepared.copy(every("mpii_nzsl")[0], tmp_path / "source")
    shutil.rmtree(root / "hand_labels_synth")
    out = job.prepare("mpii_nzsl", root, tmp_path / "out")
    assert set(job.read_manifest(out)["splits"]) == {"train", "test"}
    message = failure("mpii_nzsl", root, tmp_path / "2", "synth")
    assert "hand_labels_synth.zip" in message


def test_mpii_nzsl_damage_is_named(every, tmp_path):
    root = prepared.copy(every("mpii_nzsl")[0], tmp_path / "source")
    path = root / "hand_labels/manual_train/000015774_01_l.json"
    for content, expected in (("{", "complete JSON"), ("{}", "hand_pts (21 x 3)")):
        path.write_text(content)
        message = failure("mpii_nzsl", root, tmp_path)
        assert "000015774_01_l.json" in message and expected in message
    path = root / "hand_labels_synth/synth1/0001.json"
    content = json.loads(path.read_text())
    del content["is_left"]
    path.write_text(json.dumps(content))
    assert "a name with _l or _r" in failure("mpii_nzsl", root, tmp_path, "synth")


# --- HInt ---------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS["hint"])
def test_hint_points_sides_and_hidden_joints(every, split):
    """Traps: a list of one dict, sides in names, 1 means occluded."""
    _, made, out = every("hint")
    records = prepared.records(out, split)
    assert records
    K = hands.camera(hint.WIDTH, hint.HEIGHT, 500.0)
    for record in records:
        hand, hidden = made[record["key"]]
        assert record["is_right"] == hand.is_right
        pixels = hands.project(hand.joints3d, K)
        np.testing.assert_allclose(source_pixels(record), pixels, atol=1e-3)
        assert record["occluded"].tolist() == hidden.tolist()
        size = np.ptp(pixels, axis=0) + 8
        np.testing.assert_allclose(record["bbox_size"], size, atol=1e-3)


def test_hint_frames_of_ego4d_that_are_missing_are_counted(every):
    """Trap: the archive has Ego4D's annotations without their frames."""
    sequence = manifest(every("hint")[2], "test_ego4d_seq")
    assert sequence["kept"] == 1
    assert sequence["dropped"] == {"no picture: cut it from Ego4D's video": 1}
    assert not any("ego4d" in split for split in hint_converter.BUILDER.default_splits)


def test_hint_split_without_any_frame_says_what_to_do(every, tmp_path):
    message = failure("hint", every("hint")[0], tmp_path, "test_ego4d")
    assert "cut the frames" in message


def test_hint_pictures_of_other_parts_have_to_be_there(every, tmp_path):
    root = prepared.copy(every("hint")[0], tmp_path / "source")
    next((root / "TRAIN_newdays_img").glob("*_l.jpg")).unlink()
    message = failure("hint", root, tmp_path, "train_newdays")
    assert "_l.jpg' is missing" in message and "HInt_annotation_partial" in message
    path = next((root / "TEST_epick_img").glob("*_l.json"))
    path.write_text("[]")
    assert path.name in failure("hint", root, tmp_path, "test_visor")


def test_hint_splits_are_the_published_folders():
    folders = {hint_converter.folder(split) for split in hint_converter.BUILDER.splits}
    assert folders == set(hint.FOLDERS)


# --- ASL ----------------------------------------------------------------------------


def test_asl_letters_and_pictures(every):
    """Traps: doubled folders, numbers from one, "nothing" has no hand."""
    _, made, out = every("asl")
    for split, count in (("train", 4 * 11), ("val", 4), ("test", 3)):
        records = prepared.records(out, split)
        assert len(records) == count
        for record in records:
            assert record["image"] == made[record["key"]]
            name = record["key"].split("/")[-1]
            assert name.startswith(record["text"]) and record["text"] != "nothing"
    assert manifest(out, "train")["dropped"] == {"no hand": 11}


def test_asl_val_is_the_end_of_each_class(every):
    """Trap: neighbouring frames are nearly equal, so a random split leaks."""
    out = every("asl")[2]
    keys = {s: [r["key"] for r in prepared.records(out, s)] for s in ("train", "val")}
    numbers = [int(key.split("/A/A")[1][:-4]) for key in keys["train"] if "/A/" in key]
    assert numbers == list(range(1, 12))  # by number, not by name
    assert next(key for key in keys["val"] if "/A/" in key).endswith("/A12.jpg")


def test_asl_unpacked_once_too_deep_is_noticed(every, tmp_path):
    message = failure("asl", every("asl")[0] / "asl_alphabet_train", tmp_path)
    assert "asl_alphabet_train/asl_alphabet_train' is missing" in message
    assert "archive.zip" in message
    with pytest.raises(SourceError):
        asl_converter.index(DownloadedFiles(tmp_path, asl_converter.BUILDER), "test")


def test_all_data_sets_have_a_miniature():
    import importlib

    for name in datasets.names():
        assert callable(importlib.import_module(f"miniatures.{name}").make)
