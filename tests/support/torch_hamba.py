"""Hamba's regressor, sampler and decoder in plain PyTorch, to compare with.

Written from the published description of the released network, with the names of its
checkpoint, position by position where that is simple.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Linear2d(nn.Linear):
    """A matrix, applied at every place of a channel-first map."""

    def forward(self, x):
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class Norm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SS2D(nn.Module):
    def __init__(self, dim):
        super().__init__()
        inner, rank, state = self.sizes = 2 * dim, -(-dim // 16), 1
        self.x_proj_weight = nn.Parameter(torch.empty(4, rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner))
        self.A_logs = nn.Parameter(torch.empty(4 * inner, state))
        self.Ds = nn.Parameter(torch.empty(4 * inner))
        self.out_norm = Norm2d(inner)
        self.in_proj = Linear2d(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.out_proj = Linear2d(inner, dim, bias=False)

    def forward(self, x):
        u = F.silu(self.conv2d(self.in_proj(x)))
        rows, columns = u.flatten(2), u.transpose(2, 3).flatten(2)
        y = [
            self.scan(k, sequence)
            for k, sequence in enumerate(
                (rows, columns, rows.flip(-1), columns.flip(-1))
            )
        ]
        by_rows, by_columns = (y[k] + y[k + 2].flip(-1) for k in (0, 1))
        height, width = u.shape[2:]
        by_columns = by_columns.unflatten(2, (width, height)).transpose(2, 3)
        y = by_rows.unflatten(2, (height, width)) + by_columns
        return self.out_proj(self.out_norm(y))

    def scan(self, k, u):
        """One direction, (batch, channel, length)."""
        inner, rank, state = self.sizes
        own = slice(k * inner, (k + 1) * inner)
        A = -self.A_logs[own].exp()
        mixed = torch.einsum("cd,bdl->bcl", self.x_proj_weight[k], u)
        dt, B, C = mixed.split([rank, state, state], 1)
        dt = torch.einsum("dr,brl->bdl", self.dt_projs_weight[k], dt)
        dt = F.softplus(dt + self.dt_projs_bias[k][:, None])
        h, out = torch.zeros(len(u), inner, state), []
        for t in range(u.shape[2]):
            step = dt[:, :, t, None]
            h = (step * A).exp() * h + step * B[:, None, :, t] * u[:, :, t, None]
            out.append((h * C[:, None, :, t]).sum(-1) + self.Ds[own] * u[:, :, t])
        return torch.stack(out, 2)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.norm2 = Norm2d(dim), Norm2d(dim)
        self.op = SS2D(dim)
        self.mlp = nn.ModuleDict({"fc1": Linear2d(dim, 4 * dim)})
        self.mlp["fc2"] = Linear2d(4 * dim, dim)

    def forward(self, x):
        x = x + self.op(self.norm(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class GraphConv(nn.Module):
    def __init__(self, dim, neighbours):
        super().__init__()
        self.register_buffer("neighbours", neighbours, persistent=False)
        joints = len(neighbours)
        self.W = nn.Parameter(torch.empty(2, joints, dim, dim))
        self.e_0 = nn.Parameter(torch.empty(1, joints))
        self.e_1 = nn.Parameter(torch.empty(1, int(neighbours.sum())))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x):
        out = torch.zeros_like(x)
        logits = torch.full(self.neighbours.shape, -torch.inf)
        logits[self.neighbours] = self.e_1[0]
        weights = logits.softmax(1)
        for i, j in self.neighbours.nonzero().tolist():
            out[:, i] += weights[i, j] * (x[:, j] @ self.W[1, j])
        for i in range(x.shape[1]):
            out[:, i] += x[:, i] @ self.W[0, i]
        return out + self.bias


class Graph(nn.Module):
    def __init__(self, dim, neighbours):
        super().__init__()
        self.gconv, self.bn = GraphConv(dim, neighbours), nn.BatchNorm1d(dim)

    def forward(self, x):
        return F.relu(self.bn(self.gconv(x).transpose(1, 2)).transpose(1, 2))


class Trunk(nn.Module):
    def __init__(self, depths, dim, neighbours=None):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.Sequential(*(Block(dim) for _ in range(n)))})
            for n in depths
        )
        for i in range(len(depths)):
            setattr(self, f"outnorm{i}", Norm2d(dim))
        if neighbours is not None:
            self.gcn_layers = nn.ModuleList(Graph(dim, neighbours) for _ in depths)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            if hasattr(self, "gcn_layers"):
                joints = x[:, :, :-1, 0].transpose(1, 2)
                joints = self.gcn_layers[i](joints).transpose(1, 2)
                x = torch.cat([joints[..., None], x[:, :, -1:]], 2)
            x = layer["blocks"](x)
        return getattr(self, f"outnorm{i}")(x)


class Head(nn.Module):
    """A trunk under one of two names, linear layers, and what they are added to."""

    def __init__(self, name, trunk, inputs):
        super().__init__()
        self.name = name
        setattr(self, name, trunk)
        for part, size in (("pose", 96), ("shape", 10), ("cam", 3)):
            setattr(self, f"dec{part}", nn.Linear(inputs, size))
        self.register_buffer("init_hand_pose", torch.zeros(1, 96))
        self.register_buffer("init_betas", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.zeros(1, 3))

    def numbers(self, x):
        return (
            self.decpose(x) + self.init_hand_pose,
            self.decshape(x) + self.init_betas,
            self.deccam(x) + self.init_cam,
        )


class Hamba(nn.Module):
    """From the backbone's map on."""

    def __init__(self, channels, dim, regressor, decoder, neighbours):
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, dim, 1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1),
        )
        trunk = Trunk(regressor, dim)
        self.initRegression = Head("dec_vssm", trunk, dim)
        filters = nn.Sequential(
            nn.Conv1d(dim, dim, 1),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Conv1d(dim, dim, 1),
        )
        self.gridSampleFeature = nn.ModuleDict({"filters": filters})
        trunk = Trunk(decoder, dim, neighbours)
        self.mano_head = Head("dec_gcn_vssm", trunk, 3 * dim + 2 * len(neighbours))

    def first(self, features):
        """The joints regressor's numbers for a narrowed map."""
        x = self.initRegression.dec_vssm(features)
        return self.initRegression.numbers(x.mean((2, 3)))

    def second(self, features, joints2d, clip):
        """The hand's numbers, given the first hand's 2-D joints (-0.5 to 0.5)."""
        grid = 2 * joints2d
        if clip:
            x = grid[..., :1].clip(-0.875, 0.875) / 0.875
            grid = torch.cat([x, grid[..., 1:]], -1)
        sampled = F.grid_sample(features, grid[:, :, None], align_corners=False)
        sampled = self.gridSampleFeature["filters"](sampled[..., 0])
        mean = features.mean((2, 3))
        tokens = torch.cat([sampled, mean[..., None]], 2)[..., None]
        mixed = self.mano_head.dec_gcn_vssm(tokens).mean((2, 3))
        fused = torch.cat([mixed, joints2d.flatten(1), mean, sampled.mean(2)], 1)
        return self.mano_head.numbers(fused)
