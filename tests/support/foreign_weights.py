"""Files as PyTorch writes them, made without it, and checkpoints of published networks.

tests/golden/make_torch_files.py makes real ones, which the tests read, too.
"""

import collections
import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np
from places import GOLDEN
from torch_reference import random_state_dict, read_golden

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global(NamedTuple):
    """Pickled as an importable object of this name, which need not exist."""

    module: str
    name: str


class Storage(NamedTuple):
    array: np.ndarray


class Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: np.ndarray
    offset: int
    size: tuple
    stride: tuple


class _Pickler(pickle._Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, 2)
        self.legacy, self.storages = legacy, []

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = next(
            (i for i, a in enumerate(self.storages) if a is obj.array),
            len(self.storages),
        )
        if key == len(self.storages):
            self.storages.append(obj.array)
        kind = Global("torch", STORAGES[obj.array.dtype.name])
        view = (None,) if self.legacy else ()
        return ("storage", kind, str(key), "cpu", obj.array.size, *view)

    def reducer_override(self, obj):
        if isinstance(obj, Global):
            return obj.name
        if isinstance(obj, np.ndarray):
            stride = np.cumprod([1, *obj.shape[:0:-1]])[::-1] if obj.ndim else ()
            obj = Tensor(obj.ravel(), 0, obj.shape, tuple(map(int, stride)))
        if isinstance(obj, Tensor):
            arguments = (Storage(obj.storage), *obj[1:], False)
            rebuild = called("torch._utils", "_rebuild_tensor_v2")
            return rebuild, (*arguments, collections.OrderedDict())
        return NotImplemented

    def save_global(self, obj, name=None):
        module = getattr(obj, "module", getattr(obj, "__module__", ""))
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())


def called(module, name):
    """A callable that is pickled as a global."""

    class Callable(Global):
        def __call__(self):
            """Never."""

    return Callable(module, name)


def _pickled(value, legacy):
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, legacy)
    pickler.dump(value)
    return buffer.getvalue(), pickler.storages


def save_zip(path, value, byteorder="little"):
    """As torch 1.6 and later."""
    content, storages = _pickled(value, legacy=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", byteorder)
        for key, array in enumerate(storages):
            data = array.byteswap() if byteorder == "big" else array
            archive.writestr(f"archive/data/{key}", data.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def save_legacy(path, value):
    """As torch before 1.6."""
    content, storages = _pickled(value, legacy=True)
    system = dict(
        protocol_version=1001,
        little_endian=True,
        type_sizes=dict(short=2, int=4, long=4),
    )
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(part, file, 2)
        file.write(content)
        pickle.dump([str(key) for key in range(len(storages))], file, 2)
        for array in storages:
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


def timm_weights(name):
    """Random weights under timm's names."""
    return random_state_dict(read_golden(GOLDEN / f"{name}.npz")[1])


def simplehand_weights(backbone, features):
    """Random weights under the names of SimpleHand's released checkpoints."""
    shapes = {
        "keypoints_2d_head.weight": (42, features),
        "keypoints_2d_head.bias": (42,),
        "mesh_head.pos_emb_1": (1, 21, 256),
        "mesh_head.pos_emb_2": (1, 84, 256),
        "mesh_head.pos_emb_3": (1, 336, 128),
        "mesh_head.deconv.0.weight": (features, 256, 4, 4),
        "mesh_head.deconv.1.weight": (256,),
        "mesh_head.deconv.1.bias": (256,),
        "mesh_head.deconv.1.running_mean": (256,),
        "mesh_head.deconv.1.running_var": (256,),
        "mesh_head.deconv.1.num_batches_tracked": (),
        "mesh_head.pred_final.weight": (3, 64),
        "mesh_head.pred_final.bias": (3,),
    }
    tokens = (21, 84, 336, 778)
    for i, (before, width) in enumerate([(256, 256), (256, 128), (128, 64)]):
        k = i + 1
        block = f"mesh_head.encoder_{k}.0"
        linear = {
            f"mesh_head.proj_{k}.": (width, before),
            f"{block}.token_mixer.in_proj_": (3 * width, width),
            f"{block}.token_mixer.out_proj.": (width, width),
            f"{block}.mlp.fc1.": (4 * width, width),
            f"{block}.mlp.fc2.": (width, 4 * width),
            f"mesh_head.upsample_{k}.upsample.": (tokens[i + 1], tokens[i]),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {
                f"{block}.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")
            }
        for key, shape in linear.items():
            shapes |= {f"{key}weight": shape, f"{key}bias": shape[:1]}
    weights = random_state_dict(shapes)
    weights["keypoints_2d_head.bias"] = weights["keypoints_2d_head.bias"] + 0.5
    return weights | {f"backbone.{k}": v for k, v in timm_weights(backbone).items()}


def hamer_shapes(
    *, patches=192, width=1280, depth=32, dim=1024, inner=512, mlp=1024, layers=6
):
    """Names and shapes of HaMeR's checkpoint; the defaults are the released sizes."""

    def linear(key, outputs, inputs, bias=True):
        return {f"{key}.weight": (outputs, inputs)} | (
            {f"{key}.bias": (outputs,)} if bias else {}
        )

    def norm(key, channels):
        return {f"{key}.{leaf}": (channels,) for leaf in ("weight", "bias")}

    shapes = {
        "backbone.pos_embed": (1, patches + 1, width),
        "backbone.patch_embed.proj.weight": (width, 3, 16, 16),
        "backbone.patch_embed.proj.bias": (width,),
        **norm("backbone.last_norm", width),
        "mano_head.init_hand_pose": (1, 96),
        "mano_head.init_betas": (1, 10),
        "mano_head.init_cam": (1, 3),
        "mano_head.transformer.pos_embedding": (1, 1, dim),
        **linear("mano_head.transformer.to_token_embedding", dim, 1),
        **linear("mano_head.decpose", 96, dim),
        **linear("mano_head.decshape", 10, dim),
        **linear("mano_head.deccam", 3, dim),
        "discriminator.D_conv1.weight": (32, 9, 1, 1),
        "discriminator.D_conv1.bias": (32,),
        "discriminator.D_conv2.weight": (32, 32, 1, 1),
        "discriminator.D_conv2.bias": (32,),
        **linear("discriminator.betas_fc1", 10, 10),
        **linear("discriminator.betas_fc2", 5, 10),
        **linear("discriminator.betas_out", 1, 5),
        **linear("discriminator.D_alljoints_fc1", 1024, 480),
        **linear("discriminator.D_alljoints_fc2", 1024, 1024),
        **linear("discriminator.D_alljoints_out", 1, 1024),
        "mano.faces_tensor": (1538, 3),
        "mano.v_template": (778, 3),
        "mano.shapedirs": (778, 3, 10),
        "mano.J_regressor": (16, 778),
        "mano.posedirs": (135, 2334),
        "mano.parents": (16,),
        "mano.lbs_weights": (778, 16),
        "mano.hand_components": (6, 45),
        "mano.hand_mean": (45,),
        "mano.pose_mean": (48,),
        "mano.extra_joints_idxs": (5,),
        "mano.joint_map": (21,),
        "initialized": (),
    }
    for joint in range(15):
        shapes |= linear(f"discriminator.pose_out.{joint}", 1, 32)
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
    for i in range(layers):
        layer = f"mano_head.transformer.transformer.layers.{i}"
        for part in range(3):
            shapes |= norm(f"{layer}.{part}.norm", dim)
        shapes |= linear(f"{layer}.0.fn.to_qkv", 3 * inner, dim, bias=False)
        shapes |= linear(f"{layer}.1.fn.to_q", inner, dim, bias=False)
        shapes |= linear(f"{layer}.1.fn.to_kv", 2 * inner, width, bias=False)
        for part in range(2):
            shapes |= linear(f"{layer}.{part}.fn.to_out.0", dim, inner)
        shapes |= linear(f"{layer}.2.fn.net.0", mlp, dim)
        shapes |= linear(f"{layer}.2.fn.net.3", dim, mlp)
    return shapes


def lightning_checkpoint(path, weights):
    """What HaMeR's and Hamba's training saves: weights and a yacs tree of settings."""
    settings = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    saved = {
        "epoch": 12,
        "state_dict": collections.OrderedDict(weights),
        "hyper_parameters": {"cfg": settings(MODEL=settings(IMAGE_SIZE=256))},
    }
    return save_zip(path, saved)


def simplehand_checkpoint(path, weights, epoch=200):
    """What SimpleHand's training script saves."""
    group = dict(lr=np.float64(5e-5), betas=(0.9, 0.999), params=[0])
    state = {0: dict(step=np.float32(3), exp_avg=np.zeros((42, 2), np.float32))}
    state[0]["step"] = np.full((), 3, np.float32)
    saved = dict(
        epoch=epoch,
        state_dict=collections.OrderedDict(weights),
        optimizer_state_dict=dict(state=state, param_groups=[group]),
        scaler_state_dict=dict(scale=65536.0, growth_factor=2.0, _growth_tracker=7),
    )
    return save_zip(path, saved)
