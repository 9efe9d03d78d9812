"""Write small checkpoints with PyTorch itself, to be read without it.

python tests/golden/make_torch_files.py     # needs torch
"""

import collections
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def saved():
    """Every kind of tensor that checkpoints hold; the values are those of the test."""
    base = torch.arange(24, dtype=torch.float32)
    weights = collections.OrderedDict(
        plain=base.reshape(4, 6),
        transposed=base.reshape(4, 6).t(),
        part=base.reshape(4, 6)[1:3, 2:5],
        double=base.double()[:3],
        half=base.half()[:3],
        bfloat16=base.bfloat16()[:3],
        long=torch.tensor([1, -2, 3]),
        byte=torch.tensor([1, 255], dtype=torch.uint8),
        flag=torch.tensor([True, False]),
        scalar=torch.tensor(7),
        nothing=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base[:2].clone()),
    )
    group = {"lr": np.float64(0.25), "betas": (0.9, 0.999)}
    return {
        "epoch": 3,
        "state_dict": weights,
        "optimizer": {"param_groups": [group]},
        "size": weights["plain"].shape,
    }


def main():
    torch.save(saved(), HERE / "torch_zip.pth")
    torch.save(saved(), HERE / "torch_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
