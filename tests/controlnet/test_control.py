import json

import cv2
import numpy as np
import pytest
from fake_records import SIZE, jpeg, mirrored, write
from fake_records import record as fake_record
from PIL import Image

from handjax import control
from handjax.controlnet import folder as control_files
from handjax.controlnet import images, workers
from handjax.controlnet.folder import Folder
from handjax.mano import model_files
from handjax.mano.model_files import joint_regressor

IN_PROCESSES = workers.run
FILE = model_files.load("open")
MESH_VERTICES = np.asarray(FILE.v_template, np.float64) @ np.array(
    [[0, 1.0, 0], [0, 0, 1], [1, 0, 0]]
)
K = np.array([[150.0, 0, 47.5], [0, 150, 47.5], [0, 0, 1]])


def record(seed, **changes):
    """The flat hand, its picture green where the mesh is; every third a left one."""
    shift = [0.01 * (seed % 3), 0.005 * seed, 0.5 + 0.01 * seed]
    vertices = MESH_VERTICES - MESH_VERTICES.mean(axis=0) + shift
    joints = joint_regressor(FILE) @ vertices
    pixels = (joints @ K.T)[:, :2] / joints[:, 2:]
    view = images.HandInView(K, pixels, vertices, np.asarray(FILE.faces))
    picture = np.full((SIZE, SIZE, 3), (90, 20, 20), np.uint8)
    picture[images.draw("depth", view, SIZE).image.any(axis=-1)] = (0, 200, 0)
    ones = np.ones((21, 1))
    example = fake_record(
        seed,
        image=jpeg(picture),
        K=K,
        vertices=vertices,
        joints3d=np.concatenate([joints, ones], -1),
        joints2d=np.concatenate([pixels, ones], -1),
        bbox_center=pixels.mean(axis=0),
        bbox_size=np.ptp(pixels, axis=0),
    )
    example = mirrored(example) if seed % 3 == 2 else example
    return {k: v for k, v in (example | changes).items() if v is not None}


def in_process(job, parts, count, predict=None):
    """`control_workers.run` without the seconds that processes take to start."""
    workers._start(job)
    for part in parts:
        hands = predict(part) if predict else None
        job.folder.finish_part(part, workers.make_part(part, hands))
        yield len(part)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(workers, "run", in_process)
    monkeypatch.setattr(control_files, "PART", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write(directory, count=5, num_shards=1, records=record)
    return directory


def command(data, out, *flags):
    arguments = [f"--data={data}", f"--out={out}", "--size=64", *flags]
    return control.main(arguments)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def picture(path):
    with Image.open(path) as opened:
        assert opened.mode == "RGB"
        return np.asarray(opened).astype(int)


# --- what is written ----------------------------------------------------------------


def test_meshes_lie_on_the_hands_of_both_sides(data, tmp_path, capsys):
    assert command(data, tmp_path) == 0
    assert "5 examples, mesh, depth, normals, pose2d, both" in capsys.readouterr().out
    folder = tmp_path / "train"
    rows = lines(folder / "metadata.jsonl")
    assert [row["is_right"] for row in rows] == [True, True, False, True, True]
    for row in rows:
        target = picture(folder / row["file_name"])
        green = target[..., 1] > 110
        for column in ("conditioning_image", "depth"):
            drawn = picture(folder / row[f"{column}_file_name"]).any(axis=-1)
            both = (green & drawn).sum() / (green | drawn).sum()
            # The stored picture is small: its green is a pixel off at most.
            assert both > 0.85, (row["index"], column, both)
            border = cv2.dilate(green.astype(np.uint8), np.ones((5, 5))) > 0
            assert not drawn[~border].any()
        pose = picture(folder / row["pose2d_file_name"]).any(axis=-1)
        assert green[pose].mean() > 0.8  # dots reach past the finger tips
        near, far = row["depth_range_m"]
        assert 0.3 < near < far < 0.7
    right, left = rows[1]["text"], rows[2]["text"]
    assert right.startswith("A right hand with all fingers straight")
    assert left.startswith("A left hand with all fingers straight")


def test_imagefolder_names_columns_as_datasets_reads_them(data, tmp_path):
    assert command(data, tmp_path, "--what=depth,pose2d", "--num=3") == 0
    folder = tmp_path / "train"
    rows = lines(folder / "metadata.jsonl")
    assert len(rows) == 3 and set(rows[0]) == {
        *("file_name", "conditioning_image_file_name", "pose2d_file_name", "text"),
        *("index", "is_right", "depth_range_m"),
    }
    assert rows[2]["conditioning_image_file_name"] == "depth/000002.png"
    shown = sorted(p.name for p in folder.iterdir() if p.name[0] != ".")
    assert shown == ["control.json", "depth", "images", "metadata.jsonl", "pose2d"]
    said = json.loads((folder / "control.json").read_text())
    assert "depth_range_m" in said["pixels"]["depth"] and said["settings"]["num"] == 3


def test_controlnet_layout_is_the_tutorials(data, tmp_path):
    flags = ["--layout=controlnet", "--what=mesh,both", "--split=test"]
    assert command(data, tmp_path, *flags) == 0
    folder = tmp_path / "test"
    for name, kind in (("prompt.json", "mesh"), ("prompt_both.json", "both")):
        (entry,) = lines(folder / name)
        assert entry["source"] == f"source/{kind}/000000.png"
        assert entry["target"] == "target/000000.png"
        assert entry["prompt"].startswith("A right hand with all fingers straight")
        assert picture(folder / entry["source"]).shape == (64, 64, 3)
        assert picture(folder / entry["target"]).shape == (64, 64, 3)


# --- resuming -----------------------------------------------------------------------


def files_in(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_an_interrupted_job_goes_on_and_ends_the_same(
    data, tmp_path, monkeypatch, capsys
):
    assert command(data, tmp_path / "a", "--what=mesh") == 0
    made = workers._made

    def stop(worker, index, hands):
        if index == 3:
            raise KeyboardInterrupt
        return made(worker, index, hands)

    monkeypatch.setattr(workers, "_made", stop)
    assert command(data, tmp_path / "b", "--what=mesh") == 130
    assert "the same command goes on" in capsys.readouterr().err
    folder = tmp_path / "b" / "train"
    assert not (folder / "metadata.jsonl").exists()
    # What a killed process leaves behind is swept away.
    (folder / "mesh" / ".000003.png.x7").write_bytes(b"half")

    seen = []
    monkeypatch.setattr(
        workers, "_made", lambda w, i, h: seen.append(i) or made(w, i, h)
    )
    assert command(data, tmp_path / "b", "--what=mesh") == 0
    assert "going on after 2 examples" in capsys.readouterr().out
    assert seen == [2, 3, 4]
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    assert command(data, tmp_path / "b", "--what=mesh") == 0 and len(seen) == 3


def test_captions_are_replaced_without_drawing_again(data, tmp_path, capsys):
    assert command(data, tmp_path, "--what=mesh") == 0
    listed = tmp_path / "train" / "metadata.jsonl"
    before = lines(listed)
    given = tmp_path / "captions.jsonl"
    given.write_text(
        '{"index": 1, "text": "A hand in a glove"}\n{"index": 99, "text": "x"}'
    )
    (tmp_path / "train" / "mesh" / "000000.png").write_bytes(b"not drawn again")
    assert command(data, tmp_path, "--what=mesh", f"--captions={given}") == 0
    assert "captions: 1 of the 2 in" in capsys.readouterr().out
    after = lines(listed)
    assert after[1]["text"] == "A hand in a glove" and after[0] == before[0]
    assert (tmp_path / "train" / "mesh" / "000000.png").read_bytes()[:3] == b"not"
    # Without the file they are the pose's again.
    assert command(data, tmp_path, "--what=mesh") == 0 and lines(listed) == before


# --- records that give no example ---------------------------------------------------


def test_records_without_a_mesh_are_left_out_and_counted(tmp_path, capsys):
    broken = jpeg(np.zeros((SIZE, SIZE, 3), np.uint8))[:200]

    def some(seed):
        missing = {
            1: {"vertices": None},
            2: {"K": None},
            3: {"image": broken},
            4: {"joints3d": np.full((21, 4), np.nan)},
        }
        return record(seed, **missing.get(seed, {}))

    data = write(tmp_path / "data", count=6, num_shards=1, records=some)
    assert command(data, tmp_path / "a", "--what=mesh") == 0
    out = capsys.readouterr().out
    assert "2 examples" in out
    assert "left out: 2 x no mesh with a camera is annotated, 2 x unreadable" in out
    kept = lines(tmp_path / "a" / "train" / "metadata.jsonl")
    assert [row["index"] for row in kept] == [0, 5]
    # For 2-D joints alone no mesh is needed.
    assert command(data, tmp_path / "b", "--what=pose2d") == 0
    kept = lines(tmp_path / "b" / "train" / "metadata.jsonl")
    assert [row["index"] for row in kept] == [0, 1, 2, 5]
    assert kept[1]["text"] == "A right hand" and kept[2]["text"] == "A left hand"


def test_a_split_without_any_mesh_is_an_error(tmp_path, capsys):
    data = write(
        tmp_path / "data", count=2, records=lambda seed: record(seed, vertices=None)
    )
    assert command(data, tmp_path / "a", "--what=mesh") == 2
    said = capsys.readouterr().err
    assert "None of 2 records gives an example: 2 x no mesh" in said
    assert not (tmp_path / "a" / "train" / "metadata.jsonl").exists()


# --- what cannot work ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--what=mesh,normal"], "'normal' is not one of mesh, depth"),
        (["--what="], "'' is not one of"),
        (["--size=100"], "divisible by 8"),
        (["--num=-1"], "--num -1 must be 0 or more"),
        (["--mesh=guess"], "must be truth, or workdir=W"),
        (["--mesh=workdir=absent"], "absent"),
        (["--split=val"], "no split 'val'; it has"),
        (["--data=absent"], "no finished dataset"),
        (["--captions=absent.jsonl"], "absent.jsonl"),
        (["--hand=absent.pkl"], "absent.pkl"),
    ],
)
def test_wrong_flags_give_one_line_and_no_folder(data, tmp_path, capsys, flags, match):
    assert command(data, tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert match in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pictures_made_otherwise_are_not_mixed(data, tmp_path, capsys):
    assert command(data, tmp_path, "--what=mesh") == 0
    for flags, match in (
        (["--what=mesh", "--num=3"], "num 5, not 3"),
        (["--what=mesh,depth"], "what ['mesh'], not ['mesh', 'depth']"),
    ):
        assert command(data, tmp_path, *flags) == 2
        assert match in capsys.readouterr().err
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "mine.txt").write_text("precious")
    assert command(data, tmp_path / "other") == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_full_disk_is_said_before_work_begins(data, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(control_files.shutil, "disk_usage", lambda path: usage)
    assert command(data, tmp_path) == 2
    assert "take about 0.0 GB, and the disk" in capsys.readouterr().err
    assert not (tmp_path / "train" / "images").exists()


def test_meshes_of_another_hand_model_are_refused(tmp_path, capsys):
    order = np.random.default_rng(0).permutation(778)

    def shuffled(seed):
        example = record(seed)
        return example | {"vertices": example["vertices"][order]}

    data = write(tmp_path / "data", count=2, records=shuffled)
    assert command(data, tmp_path / "a") == 2
    said = capsys.readouterr().err
    assert "joints of its mesh are" in said and "give that model's file" in said


# --- a model's meshes ---------------------------------------------------------------


def test_a_models_hand_is_drawn_where_it_sees_it(data, tmp_path, monkeypatch):
    """A predictor that knows the truth gives the annotated pictures."""
    from data_pipelines.storage import shards
    from handjax.controlnet import examples
    from handjax.geometry.skeleton import HAND
    from handjax.inference import predictor

    split = shards.open_split(data, "train")

    class Knows:
        name, skeleton = "oracle, step 1", HAND
        config = type("C", (), {"hand": type("H", (), {"source": "open"})})

        def run(self, requests):
            assert [r.box.source for r in requests] == ["given"] * len(requests)
            return [self.one(int(r.photo.path.name.split()[1])) for r in requests]

        def one(self, index):
            placed = examples.annotated(examples.open_record(split, index))
            root = placed.joints3d[9]
            fields = {
                "vertices": placed.vertices - root,
                "joints3d": placed.joints3d - root,
                "translation": root,
            }
            return type("Hand", (), fields)

    monkeypatch.setattr(
        predictor.HandPredictor, "from_workdir", lambda *a, **k: Knows()
    )
    assert command(data, tmp_path / "a") == 0
    assert command(data, tmp_path / "b", "--mesh=workdir=w") == 0
    a, b = files_in(tmp_path / "a" / "train"), files_in(tmp_path / "b" / "train")
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == ["control.json"]
    assert b'"mesh": "oracle, step 1"' in b["control.json"]


# --- processes ----------------------------------------------------------------------


@pytest.mark.slow
def test_processes_write_the_same(data, tmp_path, monkeypatch):
    assert command(data, tmp_path / "a") == 0
    monkeypatch.setattr(workers, "run", IN_PROCESSES)
    assert command(data, tmp_path / "b", "--workers=2") == 0
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_parts_cover_every_example(tmp_path):
    folder = Folder(tmp_path, "imagefolder", ["mesh"], 5)
    assert [list(part) for part in folder.parts()] == [[0, 1], [2, 3], [4]]
    folder.finish_part(range(2, 4), [])
    assert folder.missing() == [range(0, 2), range(4, 5)]
