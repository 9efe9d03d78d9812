"""Every reader of files from strangers, with small files that it reads as they are."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fake_records
import foreign_weights
import numpy as np
import protocol_hands
import python2_pickle
import scipy.sparse
import tiny_tflite
from PIL import Image

from data_pipelines import datasets
from data_pipelines.loading import examples, pose_files
from data_pipelines.preparation import job
from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.description import DroppedError
from data_pipelines.storage import schema, shards
from handjax import fid, tables
from handjax.checkpoints import workdir
from handjax.config import schema as configs
from handjax.controlnet import captions
from handjax.conversion import directory
from handjax.evaluation.protocols import dexycb, hint, interhand26m, mesh_files
from handjax.geometry import crop, mesh_hierarchy
from handjax.inference import photos, released
from handjax.io import array_files, json_files, safe_pickle, tflite_files, torch_files
from handjax.mano import model_files
from handjax.nn.text import byte_pairs
from handjax.training import nonfinite


class Reader(NamedTuple):
    """A reader, and how to make the files that are damaged for it."""

    read: Callable[[Path], Any]
    """Reads the file, or the folder in which one file was damaged."""
    make: Callable[[Path], Any]
    """Writes good files into a folder."""
    whole: bool = False
    """Whether it reads the folder."""


def _written(**files: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, content in files.items():
            name = name.replace("_DOT_", ".")
            if callable(content):
                content(folder / name)
            elif isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                (folder / name).write_text(json.dumps(content))

    return make


def _pickles(folder: Path) -> None:
    import pickle

    value = {"a": np.eye(3), "b": [np.float64(1), b"x", {1, 2}], "c": ("text", 2.5)}
    value["d"] = np.array(["x", "yy"]), np.array([{"k": 1}, None], object)
    for protocol in range(6):
        content = pickle.dumps(value, protocol)
        (folder / f"{protocol}.pkl").write_bytes(content)
    (folder / "python2.pkl").write_bytes(python2_pickle.dumps({"a": np.eye(2)}))


def _mano_arrays() -> dict[str, Any]:
    file = model_files.load()
    table = np.array([file.parents, np.arange(16)])
    table[0, 0] = 2**32 - 1
    names = ("v_template", "shapedirs", "posedirs", "weights", "J_regressor")
    arrays = {name: getattr(file, name).astype(np.float32) for name in names}
    return arrays | {
        "f": file.faces.astype(np.uint32),
        "kintree_table": table,
        "hands_mean": file.hands_mean,
        "hands_components": file.hands_components,
    }


def _mano(folder: Path) -> None:
    import pickle

    (folder / "a.pkl").write_bytes(pickle.dumps(_mano_arrays(), 2))
    np.savez(folder / "b.npz", **_mano_arrays())


def _hierarchy(path: Path) -> None:
    eye = [np.eye(12, dtype=np.float32)[::3], np.eye(4, dtype=np.float32)[:3]]
    triangles = [np.array([[0, 1, 2]], np.uint32)] * 3
    arrays = {"F": triangles}
    arrays["D"] = [scipy.sparse.csc_matrix(e) for e in eye]
    arrays["U"] = [scipy.sparse.coo_matrix(e.T) for e in eye]
    stored = {}
    for name, values in arrays.items():
        stored[name] = np.empty(len(values), object)
        for i, value in enumerate(values):
            stored[name][i] = value
    np.savez(path, **stored)


def _torch(folder: Path) -> None:
    value = {"state_dict": {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3))}}
    foreign_weights.save_zip(folder / "a.pt", value)
    foreign_weights.save_legacy(folder / "b.pth", value)


def _safetensors(path: Path, names: tuple[str, ...] = ("a", "b")) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(dict.fromkeys(names, np.eye(2, dtype="f4")), path)


def _graph() -> bytes:
    kernel = np.ones((2, 3, 3, 4), np.float16)
    tensors = [("image", (1, 8, 8, 4), None), ("kernel16", kernel.shape, kernel)]
    tensors += [("kernel", kernel.shape, None), ("bias", (2,), np.ones(2, np.float32))]
    tensors += [("out", (1, 4, 4, 2), None)]
    options = ((0, "Int8", 0), (1, "Int32", 2), (2, "Int32", 2), (3, "Int8", 3))
    steps = [("DEQUANTIZE", (1,), (2,), ()), ("CONV_2D", (0, 2, 3), (4,), options)]
    return tiny_tflite.model(tensors, steps, (0,), (4,))


def _pictures(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise).save(folder / f"a.{form.lower()}", form, exif=exif)
    for mode in ("L", "P", "CMYK", "I;16", "RGBA"):
        form = "TIFF" if mode == "CMYK" else "PNG"
        name = mode.replace(";", "") + "." + form.lower()
        Image.new(mode, (9, 7)).save(folder / name, form)


def _config() -> dict[str, Any]:
    stages = {"mesh": configs.stage(steps=1, batch_size=1, losses={"joints": 1.0})}
    base = configs.base().to_dict()
    base |= {"family": "simplehand", "model": {"width": 4}, "stages": stages}
    return json.loads(json.dumps(base))


def _report(**changes: Any) -> dict[str, Any]:
    known = {"benchmark": "b", "protocol": "p", "count": 3, "metrics": {"pa": 1.0}}
    return known | changes


def _update(folder: Path) -> None:
    note = {"stage": "mesh", "step": 3, "what": "loss", "dtype": "float32"}
    (folder / "update.json").write_text(json.dumps(note | {"processes": 1}))
    np.savez(folder / "batch-0.npz", image=np.zeros((2, 4, 4, 3), np.uint8))


def _predictions(folder: Path) -> None:
    joints, vertices = protocol_hands.hands(2)
    for name in ("pred.json", "pred.zip"):
        few = mesh_files.Meshes(joints, vertices[:, :20])
        mesh_files.write(folder / name, few)


def _vocabulary(folder: Path) -> None:
    import gzip

    lines = ["#version", *(f"{a} {b}" for a, b in zip("abcdef", "ghijkl", strict=True))]
    data = gzip.compress("\n".join(lines).encode())
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(data)


MAKE = examples.ExampleMaker(crop.CropConfig(32))
TIPS = tuple(int(i) for i in model_files.load().tip_ids)
MODELS = conventions.HandModels()


def _record(path: Path) -> Any:
    record = schema.decode(path.read_bytes())
    return MAKE([record | {"index": 0, "posable": False}])


def _split(folder: Path) -> None:
    split = shards.open_split(folder, "train")
    return [split[i]["key"] for i in range(len(split))]


def _dataset(name: str) -> Reader:
    import importlib

    def read(folder: Path) -> Any:
        module, source, _ = datasets.open_source(name, folder)
        split = next(iter(source.builder.splits))
        index = datasets.index(module, source, split)
        for row in range(min(2, index.count)):
            with contextlib.suppress(DroppedError):
                example = datasets.example(module, source, index, row, MODELS)
                schema.encode({"dataset": name, **example})

    make = importlib.import_module(f"miniatures.{name}").make
    return Reader(read, make, whole=True)


def _tars(folder: Path) -> None:
    from miniatures import hamer_tars

    hamer_tars.make(folder)


READERS: dict[str, Reader] = {
    "safe_pickle": Reader(
        lambda p: safe_pickle.load(p, safe_pickle.plain_globals()), _pickles
    ),
    "MANO": Reader(lambda p: model_files.load(p, tips=TIPS), _mano),
    "npz, npy": Reader(
        lambda p: (
            array_files.load_npz if p.suffix == ".npz" else array_files.load_npy
        )(p),
        _written(
            a_DOT_npz=lambda p: np.savez(p, a=np.eye(3), b=np.array(["x"])),
            b_DOT_npz=lambda p: np.savez_compressed(p, a=np.zeros(300)),
            c_DOT_npy=lambda p: np.save(p, np.asfortranarray(np.ones((2, 3)))),
        ),
    ),
    "mesh hierarchy": Reader(mesh_hierarchy.from_files, _written(a_DOT_npz=_hierarchy)),
    "torch": Reader(lambda p: torch_files.state_dict(torch_files.read(p), p), _torch),
    "safetensors": Reader(torch_files.read, _written(a_DOT_safetensors=_safetensors)),
    "tflite": Reader(
        tflite_files.read,
        _written(a_DOT_tflite=lambda p: p.write_bytes(_graph())),
    ),
    "photo": Reader(photos.read, _pictures),
    "picture of a data set": Reader(
        lambda p: (pictures.store(p.read_bytes()), pictures.numbers(p.read_bytes())),
        _pictures,
    ),
    "picture of a record": Reader(
        lambda p: examples.decode_image(p.read_bytes()),
        _written(a_DOT_jpg=lambda p: p.write_bytes(fake_records.record(0)["image"])),
    ),
    "record": Reader(
        _record,
        _written(
            a=lambda p: p.write_bytes(schema.encode(fake_records.record(0))),
            b=lambda p: p.write_bytes(schema.encode(fake_records.record(1))),
        ),
    ),
    "shards": Reader(
        _split, lambda p: fake_records.write(p, count=4, num_shards=1), whole=True
    ),
    "boxes": Reader(
        photos.read_boxes,
        _written(
            a_DOT_json={
                "a.jpg": {"box": [1, 2, 30, 40], "side": "left"},
                "b.jpg": {
                    "hands": [{"box": [1, 2, 30, 40]}],
                    "intrinsics": [5, 5, 1, 1],
                },
            }
        ),
    ),
    "config.json": Reader(
        workdir.read_config, _written(config_DOT_json=_config()), whole=True
    ),
    "conversion.json": Reader(
        directory.read_record,
        _written(
            conversion_DOT_json={
                "schema": "handjax/conversion",
                "kind": "backbone",
                "backbone": "x",
                "licence": "y",
            }
        ),
        whole=True,
    ),
    "manifest.json": Reader(
        job.read_manifest,
        _written(
            manifest_DOT_json={
                "splits": {
                    "train": {"shards": [{"file": "a", "sha256": "b", "bytes": 1}]}
                }
            }
        ),
        whole=True,
    ),
    "report.json": Reader(
        lambda p: tables.make([("a", tables._read(p))]), _written(a_DOT_json=_report())
    ),
    "metrics.jsonl": Reader(
        lambda p: list(json_files.lines(p, {"step": int})),
        _written(
            a_DOT_jsonl=b'{"stage": "mesh", "step": 1, "loss": 2.0}\n' * 3,
        ),
    ),
    "update.json": Reader(nonfinite.read, _update, whole=True),
    "FreiHAND and HO-3D predictions": Reader(mesh_files.read, _predictions),
    "HInt predictions": Reader(
        hint.HInt().read_predictions,
        _written(pred_DOT_json={"TEST_newdays_img/1.jpg": [[1.0, 2.0]] * 21}),
    ),
    "DexYCB predictions": Reader(
        dexycb.DexYcb().read_predictions,
        _written(
            pred_DOT_txt=("1," + ",".join(["2.5"] * 63) + "\n").encode(),
        ),
    ),
    "InterHand2.6M predictions": Reader(
        interhand26m.InterHand().read_predictions,
        _written(
            a_DOT_npz=lambda p: np.savez(
                p, annotation_id=np.array([1]), joints=np.zeros((1, 42, 3))
            ),
            b_DOT_json={"annotation_id": [1], "joints": [[[1, 2, 3]] * 42]},
        ),
    ),
    "features": Reader(
        fid.read,
        _written(
            a_DOT_npy=lambda p: np.save(p, np.ones((3, 4))),
            b_DOT_npz=lambda p: np.savez(p, mu=np.ones(4), sigma=np.eye(4)),
            c_DOT_safetensors=lambda p: _safetensors(p, ("features",)),
        ),
    ),
    "poses": Reader(
        lambda p: pose_files.PoseFile(p),
        _written(
            a_DOT_npz=lambda p: np.savez(
                p,
                hand_pose=np.zeros((3, 48), np.float32),
                betas=np.zeros((3, 10), np.float32),
            )
        ),
    ),
    "captions": Reader(
        captions.read,
        _written(
            a_DOT_jsonl=b'{"index": 0, "text": "A hand"}\n{"index": 1, "text": "B"}'
        ),
    ),
    "released weights": Reader(
        released.metrics, _written(a_DOT_safetensors=_safetensors)
    ),
    "vocabulary": Reader(byte_pairs.read, _vocabulary),
    "HaMeR's tars": Reader(_dataset("freihand").read, _tars, whole=True),
    **{
        name: _dataset(name)
        for name in (
            "asl coco_wholebody dexycb freihand halpe hint h2o3d ho3d_v2 ho3d_v3 "
            "interhand26m mpii_nzsl mtc rhd"
        ).split()
    },
}
