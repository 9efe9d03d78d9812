"""Record what SimpleHand computes in PyTorch, so that parity is checked without torch.

    python tests/golden/make_simplehand.py      # needs torch and timm

Weights and images are drawn from seeds (`torch_reference`); stored are the names and
shapes of the state dict and a sample of every step's output (see `sample`), for the
released head on a FastViT-T8 at 64 pixels.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from torch_reference import (  # noqa: E402
    import_timm,
    random_state_dict,
    sample,
)


def outputs(name, size):
    """State dict, and every step's output on the seeded image."""
    import_timm()
    import torch

    from handjax.benchmarking import torch_peers

    torch.set_grad_enabled(False)
    model = torch_peers.SimpleHand(name, size).eval()
    state = model.state_dict()
    weights = random_state_dict({key: value.shape for key, value in state.items()})
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3))
    bgr = pixels[..., ::-1].astype(np.uint8)  # what OpenCV's reader would give
    image = torch_peers.normalised(bgr.copy(), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    features = model.backbone.forward_features(image)
    points, vertices = model(image)
    found = {"joints2d": points * size, "vertices": vertices}
    for k, tokens in enumerate(model.mesh_head.stages(features, points)):
        found[f"tokens{k}"] = tokens
    return weights, pixels.astype(np.uint8), {k: v.numpy() for k, v in found.items()}


def main():
    timm = import_timm()
    weights, _, found = outputs("fastvit_t8", 64)
    arrays = {"keys": np.array(sorted(weights)), "timm": np.array(timm.__version__)}
    arrays["shapes"] = np.array([str(weights[k].shape) for k in sorted(weights)])
    arrays |= {name: sample(value) for name, value in found.items()}
    np.savez_compressed(HERE / "simplehand_t8.npz", **arrays)


if __name__ == "__main__":
    main()
