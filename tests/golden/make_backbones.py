"""Record what timm's backbones compute, so that parity is checked without torch.

    python tests/golden/make_backbones.py [NAME ...]      # needs torch and timm

Weights and images are drawn from seeds (`torch_reference`), so only outputs are stored,
of each map, its largest magnitude and a fixed sample of its values. FastViT, with its
fused form, and the vision transformers have scripts of their own.
"""

import sys
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

# Name of the file: timm's name, its options, side of the image.
MODELS = {
    "convnext_test": (
        "convnext_tiny",
        dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
        64,
    ),
    "convnext_tiny": ("convnext_tiny", {}, 64),
    "efficientnet_b0": ("efficientnet_b0", {}, 64),
    "hiera_tiny_224": ("hiera_tiny_224", {}, 224),
    "hrnet_w18": ("hrnet_w18", {}, 64),
    "hrnet_w18_small": ("hrnet_w18_small", {}, 64),
    "resnet18": ("resnet18", {}, 64),
    "resnet50": ("resnet50", {}, 64),
}


def record(timm_name, options, size):
    """Names and shapes of the state dict, and a sample of every map."""
    timm = import_timm()
    import torch

    torch.set_grad_enabled(False)
    model = timm.create_model(timm_name, **options).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = torch.tensor(random_image(size, batch=1)).permute(0, 3, 1, 2)
    final, maps = model.forward_intermediates(image)
    # Some begin with a map of stride 2; Hiera's last one is a list of tokens.
    taps = {f"stride{4 * 2**i}": value for i, value in enumerate(maps[-4:])}
    taps["final"] = final if final.ndim == 4 else maps[-1]
    arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
    arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
    for tap, value in taps.items():
        arrays[f"{size}_{tap}"] = sample(value.permute(0, 2, 3, 1).numpy())
    return arrays


def main():
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(HERE / f"{name}.npz", **record(*MODELS[name]))


if __name__ == "__main__":
    main()
