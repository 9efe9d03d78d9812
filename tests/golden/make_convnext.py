"""Record what timm's ConvNeXts compute, so that parity is checked without torch.

    python tests/golden/make_convnext.py      # needs torch and timm

Weights and images are drawn from seeds (`torch_reference`), so only outputs are stored,
of each map, its largest magnitude and a fixed sample of its values.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "nn" / "backbones"))

from torch_reference import (  # noqa: E402
    import_timm,
    random_image,
    random_state_dict,
    sample,
)

# The test size, then a published one.
MODELS = {
    "convnext_test": dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "convnext_tiny": {},
}


def main():
    timm = import_timm()
    import torch

    for name, options in MODELS.items():
        model = timm.create_model("convnext_tiny", **options).eval()
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        weights = random_state_dict(shapes)
        model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
        arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
        image = torch.tensor(random_image(64, batch=1)).permute(0, 3, 1, 2)
        with torch.no_grad():
            maps = model.forward_intermediates(image, intermediates_only=True)
            final = model.forward_features(image)
        taps = {f"stride{4 * 2**i}": value for i, value in enumerate(maps[-4:])}
        for tap, value in (taps | {"final": final}).items():
            arrays[f"64_{tap}"] = sample(value.permute(0, 2, 3, 1).numpy())
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
