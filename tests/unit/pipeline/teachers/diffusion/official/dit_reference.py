"""An independent DiT forward pass: functional, on an official state dict.

Written from the network's description only; it shares nothing with `pipeline.teachers`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH, CHANNELS, CLASSES = 32, 4, 3, 2, 4, 10


def positions(side: int) -> Tensor:
    """Fixed sine-cosine embedding (1, side², WIDTH): half of it from the column, half the row."""
    omega = 1 / 10000 ** (np.arange(WIDTH // 4) / (WIDTH // 4))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    parts = []
    for place in (columns.reshape(-1), rows.reshape(-1)):
        angles = place[:, None] * omega[None]
        parts += [np.sin(angles), np.cos(angles)]
    return torch.from_numpy(np.concatenate(parts, 1)).float()[None]


def random_state(side: int, outputs: int = 2 * CHANNELS) -> dict[str, Tensor]:
    """Make an official state dict with random weights for a latent of `side` cells."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (WIDTH, CHANNELS, PATCH, PATCH),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (PATCH**2 * outputs, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for k in range(DEPTH):
        shapes |= {
            f"blocks.{k}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{k}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{k}.mlp.fc1": (4 * WIDTH, WIDTH),
            f"blocks.{k}.mlp.fc2": (WIDTH, 4 * WIDTH),
            f"blocks.{k}.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        }
    generator = torch.Generator().manual_seed(0)
    state = {
        "pos_embed": positions(side // PATCH),
        "y_embedder.embedding_table.weight": torch.randn(CLASSES + 1, WIDTH, generator=generator),
    }
    for name, shape in shapes.items():
        scale = math.prod(shape[1:]) ** -0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1
    return state


def forward(
    state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run it: output (N, C', H, W), and every block's tokens (N, T, WIDTH)."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        value = F.layer_norm(value, (WIDTH,), eps=1e-6)
        return value * (1 + scale[:, None]) + shift[:, None]

    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear("t_embedder.mlp.2", F.silu(time)) + state["y_embedder.embedding_table.weight"][y]
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    h = F.conv2d(x, weight, bias, stride=PATCH).flatten(2).transpose(1, 2) + state["pos_embed"]
    found = {}
    for k in range(DEPTH):
        parts = linear(f"blocks.{k}.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        inner = norm(h, parts[0], parts[1])
        qkv = linear(f"blocks.{k}.attn.qkv", inner)
        q, k_, v = qkv.reshape(*qkv.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mix = torch.softmax(q @ k_.transpose(-1, -2) / math.sqrt(WIDTH // HEADS), -1) @ v
        mix = linear(f"blocks.{k}.attn.proj", mix.transpose(1, 2).flatten(2))
        h = h + parts[2][:, None] * mix
        inner = norm(h, parts[3], parts[4])
        inner = F.gelu(linear(f"blocks.{k}.mlp.fc1", inner), approximate="tanh")
        h = h + parts[5][:, None] * linear(f"blocks.{k}.mlp.fc2", inner)
        found[f"block.{k}"] = h
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
    tokens = linear("final_layer.linear", norm(h, shift, scale))
    side = math.isqrt(tokens.shape[1])
    cells = tokens.reshape(len(x), side, side, PATCH, PATCH, -1)
    size = side * PATCH
    return torch.einsum("nhwpqc->nchpwq", cells).reshape(len(x), -1, size, size), found
