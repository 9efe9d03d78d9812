"""FastViT's variables: from torch's names, and folded into the inference form.

Numpy only. Folding is exact algebra, done in float64 and cast once at the end. With
`W` a kernel and `g, b, m, v` a normalisation, `bn(W x) = (W g / s) x + b - m g / s` for
`s = sqrt(v + eps)`; an identity branch is the kernel that is one at its own channel's
centre.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_EPSILON = 1e-5  # of every batch normalisation

_SKIPPED = re.compile(r"^head\.|\.num_batches_tracked$")
_RENAMES = (
    (r"\.proj\.(\d)\.", r"_\1."),
    (r"^(stem|stages)\.(\d+)\.", r"\1_\2."),
    (r"\.blocks\.(\d+)\.", r".blocks_\1."),
    (r"\.conv_kxk\.0\.", r".conv_kxk."),
    (r"\.pos_emb\.pos_enc\.", r".position.conv."),
    (r"\.token_mixer\.norm\.identity\.", r".token_mixer.norm."),
)
_NORMS = ("bn", "norm", "identity")
_DENSE = ("fc1", "fc2", "qkv", "proj")


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rename and transpose timm's entries; the classifier is left out."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, value in state_dict.items():
        if _SKIPPED.search(key):
            continue
        collection, path, array = _entry(key, np.asarray(value))
        node = variables[collection]
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = array
    return variables


def _entry(key, value):
    name = key
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    *path, leaf = name.split(".")
    owner = path[-1] if path else ""
    if leaf.startswith("running_"):
        return "batch_stats", [*path, leaf.removeprefix("running_")], value
    if owner in _NORMS:
        return "params", [*path, {"weight": "scale"}.get(leaf, leaf)], value
    if leaf == "gamma":
        return "params", [*path, leaf], value.reshape(-1)
    if leaf == "weight" and owner in _DENSE:
        return "params", [*path, "kernel"], value.reshape(value.shape[:2]).T
    if leaf == "weight" and value.ndim == 4:
        return "params", [*path, "kernel"], value.transpose(2, 3, 1, 0)
    return "params", [*path, leaf], value


class _Folded(NamedTuple):
    """A convolution with bias."""

    kernel: np.ndarray
    bias: np.ndarray

    def tree(self):
        return {"kernel": self.kernel, "bias": self.bias}


def fuse(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the inference form (see `fastvit.fuse`)."""
    params = _float64(variables["params"])
    stats = _float64(variables["batch_stats"])
    fused = {}
    for name, node in params.items():
        if name.startswith("stages_"):
            fused[name] = _stage(node, stats[name])
        else:
            fused[name] = _mobile_one(node, stats[name])
    return {"params": _float32(fused)}


def _stage(params, stats):
    fused = {}
    for name, node in params.items():
        if name == "downsample_0":
            fused[name] = {"large_conv": {"conv": _large_kernel(node, stats[name])}}
        elif name == "downsample_1":
            fused[name] = _mobile_one(node, stats[name])
        elif name == "position":
            kernel = _add_identity(node["conv"]["kernel"], np.ones(1))
            fused[name] = {"conv": {"kernel": kernel, "bias": node["conv"]["bias"]}}
        elif "norm" in node:
            fused[name] = _attention_block(node, stats[name])
        else:
            fused[name] = _rep_mixer_block(node, stats[name])
    return fused


def _mobile_one(params, stats):
    fused = {"conv": _branches(params, stats).tree()}
    if "se" in params:
        fused["se"] = params["se"]
    return fused


def _branches(params, stats):
    """Sum the branches of a MobileOne block."""
    total = _conv_norm(params["conv_kxk"], stats["conv_kxk"])
    size = total.kernel.shape[0]
    if "conv_scale" in params:
        scale = _conv_norm(params["conv_scale"], stats["conv_scale"])
        total = _Folded(
            total.kernel + _pad(scale.kernel, size), total.bias + scale.bias
        )
    if "identity" in params:
        factor, offset = _norm(params["identity"], stats["identity"])
        total = _Folded(_add_identity(total.kernel, factor), total.bias + offset)
    return total


def _large_kernel(params, stats):
    large = _conv_norm(params["large_conv"], stats["large_conv"])
    small = _conv_norm(params["small_conv"], stats["small_conv"])
    kernel = large.kernel + _pad(small.kernel, large.kernel.shape[0])
    return _Folded(kernel, large.bias + small.bias).tree()


def _rep_mixer_block(params, stats):
    mixer, mixer_stats = params["token_mixer"], stats["token_mixer"]
    branches = _branches(mixer["mixer"], mixer_stats["mixer"])
    factor, offset = _norm(mixer["norm"], mixer_stats["norm"])
    gamma = mixer["layer_scale"]["gamma"]
    # x + gamma (mixer(x) - norm(x)): the identity's factor is 1 - gamma * factor.
    kernel = _add_identity(branches.kernel * gamma, 1 - gamma * factor)
    conv = _Folded(kernel, gamma * (branches.bias - offset))
    return {
        "token_mixer": {"conv": conv.tree()},
        "mlp": _mlp(params["mlp"], stats["mlp"], params["layer_scale"]["gamma"]),
    }


def _attention_block(params, stats):
    factor, offset = _norm(params["norm"], stats["norm"])
    qkv = params["token_mixer"]["qkv"]["kernel"]
    proj = params["token_mixer"]["proj"]
    gamma = params["layer_scale_1"]["gamma"]
    return {
        "token_mixer": {
            "qkv": {"kernel": factor[:, None] * qkv, "bias": offset @ qkv},
            "proj": {"kernel": proj["kernel"] * gamma, "bias": proj["bias"] * gamma},
        },
        "mlp": _mlp(params["mlp"], stats["mlp"], params["layer_scale_2"]["gamma"]),
    }


def _mlp(params, stats, gamma):
    last = params["fc2"]
    return {
        "conv": {"conv": _conv_norm(params["conv"], stats["conv"]).tree()},
        "fc1": params["fc1"],
        "fc2": {"kernel": last["kernel"] * gamma, "bias": last["bias"] * gamma},
    }


def _conv_norm(params, stats):
    factor, offset = _norm(params["bn"], stats["bn"])
    return _Folded(params["conv"]["kernel"] * factor, offset)


def _norm(params, stats):
    factor = params["scale"] / np.sqrt(stats["var"] + _EPSILON)
    return factor, params["bias"] - stats["mean"] * factor


def _pad(kernel, size):
    edge = (size - kernel.shape[0]) // 2
    return np.pad(kernel, ((edge, edge), (edge, edge), (0, 0), (0, 0)))


def _add_identity(kernel, factor):
    """Add `factor * x` to what a convolution computes."""
    centre, dim_in, dim_out = kernel.shape[0] // 2, *kernel.shape[2:]
    kernel = kernel.copy()
    out = np.arange(dim_out)
    kernel[centre, centre, out % dim_in, out] += factor
    return kernel


def _float64(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _float64(node) for name, node in tree.items()}
    return np.asarray(tree, np.float64)


def _float32(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _float32(node) for name, node in tree.items()}
    return np.asarray(tree, np.float32)
