"""The same networks in plain PyTorch, to measure against and to compare with.

Written for `handjax.benchmark` and the parity tests; nothing else imports torch or
timm (`pip install "handjax[parity]"`). `SimpleHand` has the parameter names of the
released checkpoints, so that its state dict goes through `handjax.convert`.
"""

from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from handjax.nn.token_sampler import sine_code


class Block(nn.Module):
    """Pre-norm self-attention and MLP; attention as one packed module."""

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mixer = nn.MultiheadAttention(
            dim, 4, dropout=dropout, batch_first=True
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix tokens, then channels."""
        y = self.norm1(x)
        x = x + self.token_mixer(y, y, y, need_weights=False)[0]
        hidden = functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden)


class TokenUpsample(nn.Module):
    """Linear map over the token axis."""

    def __init__(self, tokens: int, new_tokens: int):
        super().__init__()
        self.upsample = nn.Linear(tokens, new_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, token, dim) to (batch, new token, dim)."""
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)


class Sampler(nn.Module):
    """Upsample a map four times, add the sine code, sample at points."""

    code: torch.Tensor

    def __init__(self, channels: int, dim: int, size: int):
        super().__init__()
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(channels, dim, 4, 4, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )
        code = torch.tensor(sine_code(size, size, dim)).permute(2, 0, 1)
        self.register_buffer("code", code, persistent=False)

    def forward(self, features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Sample tokens (batch, point, dim) at points in [0, 1]."""
        features = self.deconv(features) + self.code
        grid = ((points - 0.5) * 2).clamp(-1, 1)[:, :, None]
        sampled = functional.grid_sample(features, grid, align_corners=True)
        return sampled[..., 0].transpose(1, 2)


class MeshHead(Sampler):
    """Sampler and regressor of the released SimpleHand."""

    def __init__(self, channels: int, size: int):
        super().__init__(channels, 256, size)
        tokens, widths = (21, 84, 336, 778), (256, 256, 128, 64)
        for k in range(3):
            code = nn.Parameter(torch.zeros(1, tokens[k], widths[k]))
            self.register_parameter(f"pos_emb_{k + 1}", code)
            self.add_module(f"proj_{k + 1}", nn.Linear(widths[k], widths[k + 1]))
            blocks = nn.ModuleList([Block(widths[k + 1])])
            self.add_module(f"encoder_{k + 1}", blocks)
            layer = TokenUpsample(tokens[k], tokens[k + 1])
            self.add_module(f"upsample_{k + 1}", layer)
        self.pred_final = nn.Linear(64, 3)

    def stages(self, features: torch.Tensor, points: torch.Tensor):
        """Yield the tokens before the first layer and after each."""
        x = super().forward(features, points)
        yield x
        for k in "123":
            x = getattr(self, f"proj_{k}")(x + getattr(self, f"pos_emb_{k}"))
            for block in getattr(self, f"encoder_{k}"):
                x = block(x)
            x = getattr(self, f"upsample_{k}")(x)
            yield x

    def forward(self, features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return the vertices."""
        *_, last = self.stages(features, points)
        return self.pred_final(last)


class SimpleHand(nn.Module):
    """The released network, from normalised images (batch, 3, size, size)."""

    def __init__(self, backbone: str = "fastvit_ma36", size: int = 224):
        super().__init__()
        self.backbone: Any = timm.create_model(backbone)
        channels = self.backbone.num_features
        self.keypoints_2d_head = nn.Linear(channels, 42)
        self.mesh_head = MeshHead(channels, size // 8)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return 2-D joints in [0, 1] and vertices."""
        features = self.backbone.forward_features(image)
        points = self.keypoints_2d_head(features.mean((2, 3))).reshape(-1, 21, 2)
        return points, self.mesh_head(features, points)


class TokenHand(nn.Module):
    """Stage "mesh" of TokenHand: tokens, logits, expected codes, vertices."""

    codebook: torch.Tensor

    def __init__(self, backbone: str = "fastvit_ma36", size: int = 224):
        super().__init__()
        self.backbone: Any = timm.create_model(backbone)
        channels = self.backbone.num_features
        self.keypoints_2d_head = nn.Linear(channels, 42)
        self.sampler = Sampler(channels, 256, size // 8)
        self.code = nn.Parameter(torch.zeros(1, 21, 256))
        self.to_tokens, self.block = TokenUpsample(21, 48), Block(256)
        self.norm, self.logits = nn.LayerNorm(256), nn.Linear(256, 512)
        self.register_buffer("codebook", torch.randn(512, 512))
        tokens, widths = (48, 97, 194, 389, 778), (512, 256, 128, 64, 32)
        self.codes = nn.ParameterList(
            torch.zeros(1, n, c) for n, c in zip(tokens[:-1], widths[:-1], strict=True)
        )
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(widths[k], widths[k + 1]),
                Block(widths[k + 1]),
                TokenUpsample(tokens[k], tokens[k + 1]),
            )
            for k in range(4)
        )
        self.coordinates = nn.Linear(32, 3)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return 2-D joints in [0, 1] and vertices."""
        features = self.backbone.forward_features(image)
        points = self.keypoints_2d_head(features.mean((2, 3))).reshape(-1, 21, 2)
        x = self.to_tokens(self.sampler(features, points) + self.code)
        x = self.logits(self.norm(self.block(x))).softmax(-1) @ self.codebook
        for code, layer in zip(self.codes, self.layers, strict=True):
            x = layer(x + code)
        return points, self.coordinates(x)


PEERS: dict[str, type[nn.Module]] = {"simplehand": SimpleHand, "tokenhand": TokenHand}
"""Family to its network here."""

UPDATED = ("simplehand",)
"""Families whose update in training is compared, too (`torch_update` has its loss)."""


def normalised(image: np.ndarray, mean: Any, std: Any) -> torch.Tensor:
    """Convert 0..255 pixels (batch, size, size, 3) to a network's input."""
    scaled = torch.tensor(np.asarray(image)).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return (scaled - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(
        shape
    )
