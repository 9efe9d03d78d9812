"""Record what timm's ResNets compute, so that parity is checked without torch.

    python tests/golden/make_resnet.py      # needs torch and timm

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


def main():
    timm = import_timm()
    import torch

    for name in ("resnet18", "resnet50"):
        model = timm.create_model(name).eval()
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        weights = random_state_dict(shapes)
        model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
        arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
        image = torch.tensor(random_image(64, batch=1)).permute(0, 3, 1, 2)
        with torch.no_grad():
            maps = model.forward_intermediates(image, intermediates_only=True)
        for i, value in enumerate(maps[-4:]):
            values = value.permute(0, 2, 3, 1).numpy()
            arrays[f"64_stride{4 * 2**i}"] = sample(values)
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
