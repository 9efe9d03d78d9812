"""Record what timm's EfficientNet-B0 computes, so that parity is checked without torch.

    python tests/golden/make_efficientnet.py      # needs torch and timm

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

# Stage of timm's `blocks` that is the last of its stride.
TAPS = {"stride4": 1, "stride8": 2, "stride16": 4, "stride32": 6}


def main():
    timm = import_timm()
    import torch

    name = "efficientnet_b0"
    model = timm.create_model(name).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
    arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
    image = torch.tensor(random_image(64, batch=1)).permute(0, 3, 1, 2)
    maps = {}
    with torch.no_grad():
        x = model.bn1(model.conv_stem(image))
        for i, stage in enumerate(model.blocks):
            x = maps[i] = stage(x)
        final = model.forward_features(image)
    taps = {tap: maps[i] for tap, i in TAPS.items()} | {"final": final}
    for tap, value in taps.items():
        arrays[f"64_{tap}"] = sample(value.permute(0, 2, 3, 1).numpy())
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
