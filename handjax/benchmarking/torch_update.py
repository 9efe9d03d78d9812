"""One training update in plain PyTorch for every line on standard input.

    python -m handjax.benchmarking.torch_update simplehand fastvit_ma36 224 8

For `peer_timings`, which gives PyTorch's training a process of its own: with XLA's
large training programs in the same process its heap was found corrupted. Weights,
images and targets are random; the loss has the three L1 terms, the optimiser is AdamW
after clipping. A line is answered when its update is done.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from handjax.benchmarking.torch_peers import PEERS


def make_update(family: str, backbone: str, size: int, batch: int) -> Callable:
    """Build the update of a network of `PEERS`, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = PEERS[family](backbone, size).to(device).train()
    image = torch.rand(batch, 3, size, size, device=device) - 0.5
    joints2d = torch.rand(batch, 21, 2, device=device)
    joints3d, vertices = (torch.randn(batch, n, 3, device=device) for n in (21, 778))
    regressor = torch.rand(21, 778, device=device) / 778
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.01)

    def update() -> None:
        optimizer.zero_grad()
        points, found = network(image)
        joints = torch.einsum("jv,bvx->bjx", regressor, found)
        terms = (points - joints2d, 10 * (joints - joints3d), 10 * (found - vertices))
        loss: Any = sum(term.abs().sum(-1).mean() for term in terms)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits for a GPU

    return update


def main(arguments: list[str]) -> None:
    """Answer every line of standard input with one update."""
    family, backbone, size, batch = arguments
    update = make_update(family, backbone, int(size), int(batch))
    for _ in sys.stdin:
        update()
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
