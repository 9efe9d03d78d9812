"""Names and shapes of METRO's and FastMETRO's networks for hands, at any size."""

FASTMETRO = dict(channels=2048, width=512, narrow=128)
"""Released; L has three layers."""
METRO = dict(channels=2048, hidden=(1024, 256, 64), outputs=(512, 128), words=30522)
TINY_FASTMETRO = dict(channels=512, width=32, narrow=16, layers=1)
"""On ResNet-18."""
TINY_METRO = dict(channels=512, hidden=(24, 16, 8), outputs=(12, 8), layers=1, words=5)


def linear(key, outputs, inputs, trailing=()):
    return {f"{key}.weight": (outputs, inputs, *trailing), f"{key}.bias": (outputs,)}


def norm(key, channels):
    return {f"{key}.weight": (channels,), f"{key}.bias": (channels,)}


def fastmetro_shapes(channels, width, narrow, layers, joints=21, vertices=195):
    """All but the backbone's."""
    found = {
        **linear("conv_1x1", width, channels, (1, 1)),
        "cam_token_embed.weight": (1, width),
        "joint_token_embed.weight": (joints, width),
        "vertex_token_embed.weight": (vertices, width),
        **linear("xyz_regressor", 3, narrow),
        **linear("cam_predictor", 3, narrow),
    }
    for name in ("enc_cam", "enc_img", "dec"):
        found |= linear(f"dim_reduce_{name}", narrow, width)
    for name, dim in (("transformer_1", width), ("transformer_2", narrow)):
        for half, attentions in (
            ("encoder", ["self_attn"]),
            ("decoder", ["self_attn", "multihead_attn"]),
        ):
            found |= norm(f"{name}.{half}.norm", dim)
            for i in range(layers):
                layer = f"{name}.{half}.layers.{i}"
                for attention in attentions:
                    packed = f"{layer}.{attention}.in_proj"
                    found |= {
                        f"{packed}_weight": (3 * dim, dim),
                        f"{packed}_bias": (3 * dim,),
                        **linear(f"{layer}.{attention}.out_proj", dim, dim),
                    }
                found |= linear(f"{layer}.linear1", 4 * dim, dim)
                found |= linear(f"{layer}.linear2", dim, 4 * dim)
                for k in range(len(attentions) + 1):
                    found |= norm(f"{layer}.norm{k + 1}", dim)
    return found


def metro_shapes(channels, hidden, outputs, words, layers=4, joints=21, vertices=195):
    """All but the backbone's, with the parts of BERT that nothing uses."""
    found = {
        **linear("upsampling", 778, vertices),
        **linear("cam_param_fc", 1, 3),
        **linear("cam_param_fc2", 150, joints + vertices),
        **linear("cam_param_fc3", 3, 150),
    }
    inputs = (channels + 3, *outputs)
    for i, (come, dim, leave) in enumerate(
        zip(inputs, hidden, (*outputs, 3), strict=True)
    ):
        block = f"trans_encoder.{i}"
        bert = f"{block}.bert"
        found |= {
            **linear(f"{block}.cls_head", leave, dim),
            **linear(f"{block}.residual", leave, come),
            **linear(f"{bert}.img_embedding", dim, come),
            f"{bert}.position_embeddings.weight": (512, dim),
            f"{bert}.embeddings.word_embeddings.weight": (words, dim),
            f"{bert}.embeddings.position_embeddings.weight": (512, dim),
            f"{bert}.embeddings.token_type_embeddings.weight": (2, dim),
            **norm(f"{bert}.embeddings.LayerNorm", dim),
            **linear(f"{bert}.pooler.dense", dim, dim),
        }
        for j in range(layers):
            layer = f"{bert}.encoder.layer.{j}"
            for name in ("query", "key", "value"):
                found |= linear(f"{layer}.attention.self.{name}", dim, dim)
            found |= {
                **linear(f"{layer}.attention.output.dense", dim, dim),
                **norm(f"{layer}.attention.output.LayerNorm", dim),
                **linear(f"{layer}.intermediate.dense", 4 * dim, dim),
                **linear(f"{layer}.output.dense", dim, 4 * dim),
                **norm(f"{layer}.output.LayerNorm", dim),
            }
    return found
