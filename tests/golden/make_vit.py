"""Record what timm's vision transformers compute, to check parity without torch.

    python tests/golden/make_vit.py      # needs torch and timm

For HaMeR's rules the blocks are timm's, between a padded patch convolution and the last
norm. Weights and images are drawn from seeds (`torch_reference`), so only outputs are
stored, of each map, its largest magnitude and a fixed sample of its values.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from torch_reference import (  # noqa: E402
    import_timm,
    random_image,
    random_state_dict,
    sample,
)

SMALL = dict(embed_dim=64, depth=2, num_heads=4)


def timm_rules(timm, size, **options):
    """Return timm's model, and the function from an image to its patches' tokens."""
    model = timm.create_model("vit_base_patch16_224", img_size=size, **options).eval()
    return model, lambda image: model.forward_features(image)[:, 1:]


def hamer_rules(timm, height, width, **options):
    """Return a model with the names of HaMeR's backbone, and its function."""
    import torch

    parts = timm.create_model("vit_base_patch16_224", **options)
    rows, cols = height // 16, width // 16
    model = torch.nn.Module()
    model.pos_embed = torch.nn.Parameter(
        torch.zeros(1, 1 + rows * cols, parts.embed_dim)
    )
    model.patch_embed = torch.nn.Module()
    model.patch_embed.proj = torch.nn.Conv2d(3, parts.embed_dim, 16, 16, padding=2)
    model.blocks, model.last_norm = parts.blocks, parts.norm

    def forward(image):
        x = model.patch_embed.proj(image)
        assert x.shape[2:] == (rows, cols)
        x = x.flatten(2).transpose(1, 2)
        x = x + model.pos_embed[:, 1:] + model.pos_embed[:, :1]
        return model.last_norm(model.blocks(x))

    return model.eval(), forward


def main():
    timm = import_timm()

    square, slim = random_image(64, batch=1), random_image(64, batch=1)[:, :, 8:-8]
    record(timm, "vit_test_patch16", square, *timm_rules(timm, 64, **SMALL))
    record(timm, "vit_test", slim, *hamer_rules(timm, 64, 48, **SMALL))
    whole = random_image(224, batch=1)
    record(timm, "vit_base_patch16_224", whole, *timm_rules(timm, 224))


def record(timm, name, image, model, forward):
    import torch

    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
    arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
    with torch.no_grad():
        tokens = forward(torch.tensor(image).permute(0, 3, 1, 2)).numpy()
    rows, cols = image.shape[1] // 16, image.shape[2] // 16
    arrays["final"] = sample(tokens.reshape(1, rows, cols, -1))
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
