"""Record what timm's FastViT computes, so that parity is checked without torch.

    python tests/golden/make_fastvit.py     # needs torch and timm

Weights and images are drawn from seeds (`torch_reference`), so only outputs are stored,
of each map, its largest magnitude and a fixed sample of its values. "reparameterized"
is timm's own fused network.
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

SIZES = {"fastvit_t8": (64, 224), "fastvit_sa12": (64, 224), "fastvit_ma36": (64,)}


def main():
    timm = import_timm()
    import torch
    from timm.utils.model import reparameterize_model

    for name, sizes in SIZES.items():
        model = timm.create_model(name).eval()
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        weights = random_state_dict(shapes)
        model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        fused = reparameterize_model(model)
        arrays = {"keys": np.array(sorted(shapes)), "timm": np.array(timm.__version__)}
        arrays["shapes"] = np.array([str(tuple(shapes[k])) for k in sorted(shapes)])
        for size in sizes:
            image = torch.tensor(random_image(size, batch=1)).permute(0, 3, 1, 2)
            with torch.no_grad():
                final, maps = model.forward_intermediates(image)
                folded = fused.forward_features(image)
            for i, value in enumerate([*maps, final]):
                tap = f"stride{4 * 2**i}" if i < 4 else "final"
                arrays[f"{size}_{tap}"] = sample(value.permute(0, 2, 3, 1).numpy())
            folded = folded.permute(0, 2, 3, 1).numpy()
            arrays[f"{size}_reparameterized"] = sample(folded)
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
