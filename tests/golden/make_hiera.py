"""Record what timm's Hiera computes, so that parity is checked without torch.

    python tests/golden/make_hiera.py      # needs torch and timm

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

TAPS = ("stride4", "stride8", "stride16", "stride32")


def main():
    timm = import_timm()
    import torch

    for name in ("hiera_tiny_224",):
        model = timm.create_model(name).eval()
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        weights = random_state_dict(shapes)
        model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
        arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
        image = torch.tensor(random_image(224, batch=1)).permute(0, 3, 1, 2)
        with torch.no_grad():
            maps = model.forward_intermediates(image, intermediates_only=True)
        for tap, value in zip(TAPS, maps, strict=True):
            values = value.permute(0, 2, 3, 1).numpy()
            arrays[f"224_{tap}"] = sample(values)
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
