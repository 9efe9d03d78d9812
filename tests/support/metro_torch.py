"""METRO's and FastMETRO's networks for hands in plain PyTorch, for parity tests.

Written from what is known of their state dicts and layers; names are theirs. Images are
(batch, 3, height, width), normalised.
"""

import math

import numpy as np
import torch
from torch import nn


def listed(backbone):
    """The children of a ResNet but pooling and classifier, as both projects keep it."""
    return nn.Sequential(*list(backbone.children())[:-2])


class EncoderLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x, places):
        y = self.norm1(x)
        x = x + self.self_attn(y + places, y + places, y)[0]
        return x + self.linear2(torch.relu(self.linear1(self.norm2(x))))


class DecoderLayer(EncoderLayer):
    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x, memory, places, blocked):
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, attn_mask=blocked)[0]
        x = x + self.multihead_attn(self.norm2(x), memory + places, memory)[0]
        return x + self.linear2(torch.relu(self.linear1(self.norm3(x))))


class Half(nn.Module):
    def __init__(self, kind, dim, heads, layers):
        super().__init__()
        self.layers = nn.ModuleList([kind(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x, *others):
        for layer in self.layers:
            x = layer(x, *others)
        return self.norm(x)


class Transformer(nn.Module):
    def __init__(self, dim, heads, layers):
        super().__init__()
        self.encoder = Half(EncoderLayer, dim, heads, layers)
        self.decoder = Half(DecoderLayer, dim, heads, layers)

    def forward(self, camera, tokens, queries, places, blocked):
        nowhere = torch.zeros_like(places[:1])
        x = torch.cat([camera, tokens], dim=1)
        x = self.encoder(x, torch.cat([nowhere, places]))
        camera, memory = x[:, :1], x[:, 1:]
        return camera, memory, self.decoder(queries, memory, places, blocked)


def sine_places(height, width, dim):
    """DETR's: normalised, scale 2 pi, temperature 10,000, y half then x half."""
    half = dim // 2
    rates = 10_000 ** (2 * (torch.arange(half) // 2) / half)

    def axis(size):
        angle = torch.arange(1, size + 1) / (size + 1e-6) * 2 * math.pi
        angle = angle[:, None] / rates
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=2).reshape(height * width, dim).float()


class FastMetroHand(nn.Module):
    """Joints, coarse vertices and camera of a hand."""

    def __init__(self, backbone, adjacency, *, channels, width, narrow, layers):
        super().__init__()
        joints, vertices = 21, len(adjacency)
        self.backbone = backbone
        self.conv_1x1 = nn.Conv2d(channels, width, 1)
        self.cam_token_embed = nn.Embedding(1, width)
        self.joint_token_embed = nn.Embedding(joints, width)
        self.vertex_token_embed = nn.Embedding(vertices, width)
        self.transformer_1 = Transformer(width, 8, layers)
        self.transformer_2 = Transformer(narrow, 8, layers)
        self.dim_reduce_enc_cam = nn.Linear(width, narrow)
        self.dim_reduce_enc_img = nn.Linear(width, narrow)
        self.dim_reduce_dec = nn.Linear(width, narrow)
        self.xyz_regressor = nn.Linear(narrow, 3)
        self.cam_predictor = nn.Linear(narrow, 3)
        blocked = np.zeros((joints + vertices,) * 2, bool)
        blocked[joints:, joints:] = ~adjacency
        self.blocked = torch.from_numpy(blocked)

    def forward(self, image):
        x = self.conv_1x1(self.backbone(image))
        batch, width, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        queries = [self.joint_token_embed.weight, self.vertex_token_embed.weight]
        queries = torch.cat(queries)[None].expand(batch, -1, -1)
        camera = self.cam_token_embed.weight[None].expand(batch, -1, -1)
        places = sine_places(rows, columns, width)
        camera, tokens, queries = self.transformer_1(
            camera, tokens, queries, places, self.blocked
        )
        camera = self.dim_reduce_enc_cam(camera)
        tokens, queries = self.dim_reduce_enc_img(tokens), self.dim_reduce_dec(queries)
        places = sine_places(rows, columns, tokens.shape[2])
        camera, _, queries = self.transformer_2(
            camera, tokens, queries, places, self.blocked
        )
        xyz = self.xyz_regressor(queries)
        return xyz[:, :21], xyz[:, 21:], self.cam_predictor(camera[:, 0])


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.heads = nn.Linear(dim, dim), heads

    def forward(self, x):
        def split(y):
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        probs = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(dim=3)
        return (probs @ v).transpose(1, 2).flatten(2)


class Output(nn.Module):
    def __init__(self, inputs, dim):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, dim), nn.LayerNorm(dim, 1e-12)

    def forward(self, y, x):
        return self.LayerNorm(self.dense(y) + x)


class BertLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(dim, heads), "output": Output(dim, dim)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, 4 * dim)})
        self.output = Output(4 * dim, dim)

    def forward(self, x):
        x = self.attention["output"](self.attention["self"](x), x)
        wide = nn.functional.gelu(self.intermediate["dense"](x))
        return self.output(wide, x)


class Bert(nn.Module):
    """With all that METRO never uses."""

    def __init__(self, inputs, dim, layers, words):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(words, dim),
                "position_embeddings": nn.Embedding(512, dim),
                "token_type_embeddings": nn.Embedding(2, dim),
                "LayerNorm": nn.LayerNorm(dim),
            }
        )
        self.pooler = nn.ModuleDict({"dense": nn.Linear(dim, dim)})
        self.position_embeddings = nn.Embedding(512, dim)
        self.img_embedding = nn.Linear(inputs, dim)
        stack = [BertLayer(dim, 4) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layer": nn.Sequential(*stack)})

    def forward(self, x):
        places = self.position_embeddings.weight[: x.shape[1]]
        return self.encoder["layer"](self.img_embedding(x) + places)


class Block(nn.Module):
    def __init__(self, inputs, dim, outputs, layers, words):
        super().__init__()
        self.bert = Bert(inputs, dim, layers, words)
        self.cls_head = nn.Linear(dim, outputs)
        self.residual = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.cls_head(self.bert(x)) + self.residual(x)


class MetroHand(nn.Module):
    """Joints, coarse vertices, full mesh and camera of a hand."""

    def __init__(self, backbone, rest, *, channels, hidden, outputs, layers, words):
        super().__init__()
        self.backbone, self.rest = backbone, torch.from_numpy(rest)
        inputs = (channels + 3, *outputs)
        sizes = zip(inputs, hidden, (*outputs, 3), strict=True)
        blocks = [Block(*size, layers, words) for size in sizes]
        self.trans_encoder = nn.Sequential(*blocks)
        self.upsampling = nn.Linear(len(rest) - 21, 778)
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(len(rest), 150)
        self.cam_param_fc3 = nn.Linear(150, 3)

    def forward(self, image):
        seen = self.backbone(image).mean(dim=(2, 3))[:, None]
        rest = self.rest[None].expand(len(image), -1, -1)
        tokens = torch.cat([rest, seen.expand(-1, rest.shape[1], -1)], dim=2)
        xyz = self.trans_encoder(tokens)
        cam = self.cam_param_fc2(self.cam_param_fc(xyz).transpose(1, 2))
        joints, coarse = xyz[:, :21], xyz[:, 21:]
        full = self.upsampling(coarse.transpose(1, 2)).transpose(1, 2)
        return joints, coarse, full, self.cam_param_fc3(cam)[:, 0]
