r"""Convert Hamba's released checkpoint.

    python -m handjax.convert hamba.ckpt --from hamba --to runs/hamba \
        --hand MANO_RIGHT.pkl
    python -m handjax.predict photo.jpg --workdir runs/hamba --output out

The mean parameters are the file's own. MANO's arrays in it are left alone: they come
from your copy of MANO. Widths and depths are read off the weights.

Where the release samples its tokens depends on a switch that is not in the weights and
not published. `config.model.sampling` is "released_clip" here; if predictions are worse
than published ones, write "released_noclip" into the directory's config.json.
"""

import re

import numpy as np

from handjax.config import files
from handjax.conversion import Converted, Options, _hmr
from handjax.errors import UserError

SOURCE = "https://github.com/humansensinglab/Hamba"
LICENCE = "code and weights CC BY-NC 4.0, for non-commercial use; MANO's own"

_HEADS = {"initRegression": "regressor", "mano_head": "decoder"}
_TRUNKS = {
    "initRegression.dec_vssm": "regressor",
    "mano_head.dec_gcn_vssm": "decoder",
}


def convert(state_dict: _hmr.StateDict, options: Options) -> Converted:
    """Convert a whole model.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` is not given, it is not a Hamba checkpoint, or its
            two heads have different mean parameters.
        OSError: The hand model cannot be read.
    """
    config = files.load_config("hamba:released_clip").unlock()
    config.model.update(_sizes(state_dict))
    _check_means(state_dict)
    return _hmr.assemble(
        state_dict,
        options,
        config=config,
        table=_table(config.model.regressor_depths, config.model.decoder_depths),
        licence=LICENCE,
        stage="mesh",
    )


def _sizes(state_dict: _hmr.StateDict) -> dict[str, int | float | tuple[int, ...]]:
    """Return the model's fields that shapes and names determine."""
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    first = "initRegression.dec_vssm.layers.0.blocks.0.op"
    try:
        inner, width = shapes[f"{first}.in_proj.weight"][:2]
        _, state = shapes[f"{first}.A_logs"]
    except (KeyError, ValueError):
        raise UserError(
            f"The file has no trunk `{first}.*` as Hamba's, so it is not a checkpoint "
            f"of Hamba; its entries begin with {', '.join(list(state_dict)[:4])}."
        ) from None
    depths = {
        f"{path}_depths": _depths(trunk, state_dict) for trunk, path in _TRUNKS.items()
    }
    return dict(width=width, state=state, ratio=inner / width, **depths)


def _depths(trunk: str, state_dict: _hmr.StateDict) -> tuple[int, ...]:
    """Count the blocks of each stage of a trunk."""
    pattern = re.compile(re.escape(trunk) + r"\.layers\.(\d+)\.blocks\.(\d+)\.")
    blocks = {found.groups() for key in state_dict if (found := pattern.match(key))}
    stages = sorted({int(stage) for stage, _ in blocks})
    return tuple(sum(int(stage) == i for stage, _ in blocks) for i in stages)


def _check_means(state_dict: _hmr.StateDict) -> None:
    """Check that the heads share one set of mean parameters, stored twice."""
    for name in ("init_hand_pose", "init_betas", "init_cam"):
        values = [state_dict.get(f"{head}.{name}") for head in _HEADS]
        if values[0] is None or not np.array_equal(*values):
            raise UserError(
                f"{' and '.join(f'{head}.{name}' for head in _HEADS)} must both be in "
                "the file and equal, for the released network's heads share them."
            )


def _table(regressor: tuple[int, ...], decoder: tuple[int, ...]) -> _hmr.Table:
    """Return the rules for everything outside of the backbone."""
    table = {
        **_filters("downsample", "downsample"),
        **_filters("gridSampleFeature.filters", "sampler"),
        **_hmr.discriminator(),
    }
    for key, path in _HEADS.items():
        table |= {**_hmr.heads(key, f"{path}_head"), **_hmr.mean(key)}
    for key, path in _TRUNKS.items():
        depths = regressor if path == "regressor" else decoder
        for i, depth in enumerate(depths):
            table |= _hmr.norm(f"{key}.outnorm{i}", f"{path}/norm{i}")
            for j in range(depth):
                block = f"{key}.layers.{i}.blocks.{j}"
                table |= _block(block, f"{path}/stage{i}_block{j}")
    for i in range(len(decoder)):
        graph = f"mano_head.dec_gcn_vssm.gcn_layers.{i}"
        table |= _graph(graph, f"decoder/stage{i}_graph")
    return table


def _block(key: str, path: str) -> _hmr.Table:
    """Return the rules of `ssm.VSSBlock`; x_proj, dt_proj, A_logs and Ds stay."""
    op = f"params/{path}/op"
    return {
        **_hmr.norm(f"{key}.norm", f"{path}/norm"),
        **_hmr.norm(f"{key}.norm2", f"{path}/norm2"),
        **_pointwise(f"{key}.mlp.fc1", f"{path}/fc1"),
        **_pointwise(f"{key}.mlp.fc2", f"{path}/fc2"),
        **_pointwise(f"{key}.op.in_proj", f"{path}/op/in_proj", bias=False),
        **_pointwise(f"{key}.op.out_proj", f"{path}/op/out_proj", bias=False),
        **_hmr.norm(f"{key}.op.out_norm", f"{path}/op/out_norm"),
        f"{key}.op.conv2d.weight": (f"{op}/conv/kernel", _depthwise),
        f"{key}.op.x_proj_weight": (f"{op}/x_proj", np.asarray),
        f"{key}.op.dt_projs_weight": (f"{op}/dt_proj", np.asarray),
        f"{key}.op.dt_projs_bias": (f"{op}/dt_bias", np.asarray),
        f"{key}.op.A_logs": (f"{op}/A_logs", np.asarray),
        f"{key}.op.Ds": (f"{op}/Ds", np.asarray),
    }


def _graph(key: str, path: str) -> _hmr.Table:
    """Return the rules of `joint_graph.JointGraphBlock`."""
    conv = f"params/{path}/conv"
    return {
        f"{key}.gconv.W": (f"{conv}/kernel", np.asarray),
        f"{key}.gconv.e_0": (f"{conv}/self_logits", np.ravel),
        f"{key}.gconv.e_1": (f"{conv}/edge_logits", np.ravel),
        f"{key}.gconv.bias": (f"{conv}/bias", np.asarray),
        **_batch_norm(f"{key}.bn", f"{path}/norm"),
    }


def _filters(key: str, path: str) -> _hmr.Table:
    """Return the rules of `hamba.Filters`."""
    return {
        **_pointwise(f"{key}.0", f"{path}/linear0"),
        **_batch_norm(f"{key}.1", f"{path}/norm"),
        **_pointwise(f"{key}.3", f"{path}/linear1"),
    }


def _batch_norm(key: str, path: str) -> _hmr.Table:
    return {
        **_hmr.norm(key, path),
        f"{key}.running_mean": (f"batch_stats/{path}/mean", np.asarray),
        f"{key}.running_var": (f"batch_stats/{path}/var", np.asarray),
    }


def _pointwise(key: str, path: str, *, bias: bool = True) -> _hmr.Table:
    """Convert a linear layer, stored as a matrix or as a 1x1 convolution."""
    table = _hmr.linear(key, path, bias=bias)
    return table | {f"{key}.weight": (f"params/{path}/kernel", _matrix)}


def _matrix(weight: np.ndarray) -> np.ndarray:
    """Convert (out, in), with any further axes of one entry, to (in, out)."""
    return weight.reshape(weight.shape[:2]).T


def _depthwise(weight: np.ndarray) -> np.ndarray:
    """Convert (out, 1, height, width) to (height, width, 1, out)."""
    return weight.transpose(2, 3, 1, 0)
