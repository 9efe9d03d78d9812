"""Names and shapes of Hamba's released checkpoint, at any size, and random weights."""

import numpy as np
from foreign_weights import random_state_dict

RELEASED = dict(
    width=512,
    channels=1280,
    blocks=32,
    patches=192,
    regressor=(2, 2, 2, 2),
    decoder=(2, 2, 2, 2),
)
TINY = dict(width=32, channels=64, blocks=2, patches=12, regressor=(1,), decoder=(1, 1))
"""On the backbone `vit_test`, for crops of 64."""


def shapes(width, channels, blocks, patches, regressor, decoder, joints=21):
    """Every entry of `state_dict`; blocks of each stage for the two trunks."""
    found = {
        "initialized": (),
        **_backbone(channels, blocks, patches),
        **_filters("downsample", channels, width, (1, 1)),
        **_filters("gridSampleFeature.filters", width, width, (1,)),
        **_head("initRegression", width),
        **_trunk("initRegression.dec_vssm", width, regressor),
        **_head("mano_head", 3 * width + 2 * joints),
        **_trunk("mano_head.dec_gcn_vssm", width, decoder),
        **_discriminator(),
        **{f"mano.{name}": shape for name, shape in _MANO.items()},
    }
    for i in range(len(decoder)):
        graph = f"mano_head.dec_gcn_vssm.gcn_layers.{i}"
        found |= {
            f"{graph}.gconv.W": (2, joints, width, width),
            f"{graph}.gconv.e_0": (1, joints),
            f"{graph}.gconv.e_1": (1, 2 * (joints - 1)),
            f"{graph}.gconv.bias": (width,),
            **_batch_norm(f"{graph}.bn", width),
        }
    return found


def weights(sizes):
    """Random weights; MANO's arrays, which nobody reads, are zero."""
    drawn = random_state_dict(
        {k: v for k, v in shapes(**sizes).items() if not k.startswith("mano.")}
    )
    for key, value in drawn.items():
        if key.endswith("A_logs"):  # rates around -1
            drawn[key] = 0.3 * value / np.abs(value).max()
        if key.endswith("init_hand_pose"):
            drawn[key] = value + np.tile(np.float32([1, 0, 0, 0, 1, 0]), 16)[None]
        if key.endswith("init_cam"):
            drawn[key] = np.float32([[0.9, 0.0, 0.0]])
    for key in ("init_hand_pose", "init_betas", "init_cam"):
        drawn[f"mano_head.{key}"] = drawn[f"initRegression.{key}"]
    mano = {f"mano.{k}": np.zeros(shape, np.float32) for k, shape in _MANO.items()}
    return {**drawn, **mano, "initialized": np.array(True)}


_MANO = {
    "faces_tensor": (1538, 3),
    "v_template": (778, 3),
    "shapedirs": (778, 3, 10),
    "J_regressor": (16, 778),
    "posedirs": (135, 2334),
    "parents": (16,),
    "lbs_weights": (778, 16),
    "hand_components": (6, 45),
    "hand_mean": (45,),
    "pose_mean": (48,),
    "extra_joints_idxs": (5,),
    "joint_map": (21,),
}


def _affine(key, out, inputs=None, trailing=()):
    """A linear layer or a convolution; without `inputs`, a norm."""
    weight = (out,) if inputs is None else (out, inputs, *trailing)
    return {f"{key}.weight": weight, f"{key}.bias": (out,)}


def _batch_norm(key, width):
    return {
        **_affine(key, width),
        f"{key}.running_mean": (width,),
        f"{key}.running_var": (width,),
        f"{key}.num_batches_tracked": (),
    }


def _filters(key, inputs, width, trailing):
    return {
        **_affine(f"{key}.0", width, inputs, trailing),
        **_batch_norm(f"{key}.1", width),
        **_affine(f"{key}.3", width, width, trailing),
    }


def _head(key, inputs):
    return {
        f"{key}.init_hand_pose": (1, 96),
        f"{key}.init_betas": (1, 10),
        f"{key}.init_cam": (1, 3),
        **_affine(f"{key}.decpose", 96, inputs),
        **_affine(f"{key}.decshape", 10, inputs),
        **_affine(f"{key}.deccam", 3, inputs),
    }


def _trunk(key, width, depths):
    inner, rank, found = 2 * width, -(-width // 16), {}
    for i, depth in enumerate(depths):
        found |= _affine(f"{key}.outnorm{i}", width)
        for j in range(depth):
            block = f"{key}.layers.{i}.blocks.{j}"
            found |= {
                **_affine(f"{block}.norm", width),
                f"{block}.op.x_proj_weight": (4, rank + 2, inner),
                f"{block}.op.dt_projs_weight": (4, inner, rank),
                f"{block}.op.dt_projs_bias": (4, inner),
                f"{block}.op.A_logs": (4 * inner, 1),
                f"{block}.op.Ds": (4 * inner,),
                **_affine(f"{block}.op.out_norm", inner),
                f"{block}.op.in_proj.weight": (inner, width),
                f"{block}.op.conv2d.weight": (inner, 1, 3, 3),
                f"{block}.op.out_proj.weight": (width, inner),
                **_affine(f"{block}.norm2", width),
                **_affine(f"{block}.mlp.fc1", 4 * width, width),
                **_affine(f"{block}.mlp.fc2", width, 4 * width),
            }
    return found


def _backbone(channels, blocks, patches):
    found = {
        "backbone.pos_embed": (1, 1 + patches, channels),
        **_affine("backbone.patch_embed.proj", channels, 3, (16, 16)),
        **_affine("backbone.last_norm", channels),
    }
    for i in range(blocks):
        block = f"backbone.blocks.{i}"
        found |= {
            **_affine(f"{block}.norm1", channels),
            **_affine(f"{block}.attn.qkv", 3 * channels, channels),
            **_affine(f"{block}.attn.proj", channels, channels),
            **_affine(f"{block}.norm2", channels),
            **_affine(f"{block}.mlp.fc1", 4 * channels, channels),
            **_affine(f"{block}.mlp.fc2", channels, 4 * channels),
        }
    return found


def _discriminator():
    found = {
        **_affine("discriminator.D_conv1", 32, 9, (1, 1)),
        **_affine("discriminator.D_conv2", 32, 32, (1, 1)),
        **_affine("discriminator.betas_fc1", 10, 10),
        **_affine("discriminator.betas_fc2", 5, 10),
        **_affine("discriminator.betas_out", 1, 5),
        **_affine("discriminator.D_alljoints_fc1", 1024, 480),
        **_affine("discriminator.D_alljoints_fc2", 1024, 1024),
        **_affine("discriminator.D_alljoints_out", 1, 1024),
    }
    for joint in range(15):
        found |= _affine(f"discriminator.pose_out.{joint}", 1, 32)
    return found


def listing(found):
    """One line for each entry, as published lists of them can be put."""
    return "\n".join(f"{key} {list(found[key])}" for key in sorted(found))
