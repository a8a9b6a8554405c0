"""A second, independent ADM forward pass: functional, on a state dict, told its structure.

Written from the network's description only (block order, key names, arithmetic); it shares nothing
with `pipeline.teachers.diffusion.official.adm*`, which is what makes comparing them worth while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Structure:
    channels: int = 32
    mult: tuple[float, ...] = (1, 2)
    depth: int = 1
    attention: tuple[int, ...] = (2,)  # strides
    num_heads: int = 4
    num_heads_upsample: int = -1
    head_channels: int = -1
    new_order: bool = False
    classes: int = 0
    learn_sigma: bool = True
    scale_shift: bool = True
    updown: bool = True

    def flags(self, image_size: int) -> dict[str, object]:
        """The official flags of this network."""
        heads: dict[str, object] = {"num_head_channels": self.head_channels}
        if self.head_channels == -1:
            heads = {"num_heads": self.num_heads, "num_heads_upsample": self.num_heads_upsample}
        return {
            "image_size": image_size,
            "num_channels": self.channels,
            "num_res_blocks": self.depth,
            "channel_mult": ",".join(f"{m:g}" for m in self.mult),
            "attention_resolutions": ",".join(str(image_size // s) for s in self.attention),
            "learn_sigma": self.learn_sigma,
            "class_cond": self.classes > 0,
            "use_scale_shift_norm": self.scale_shift,
            "resblock_updown": self.updown,
            "use_new_attention_order": self.new_order,
            **heads,
        }


class Reference:
    """Make a random state dict and run it; `blocks` keeps every block's output."""

    def __init__(self, structure: Structure, seed: int = 0) -> None:
        self.s = structure
        self.state: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self._rng = torch.Generator().manual_seed(seed)
        self._build = True
        size = 2 ** (len(structure.mult) - 1) * 2
        labels = torch.zeros(1, dtype=torch.long) if structure.classes else None
        self(torch.zeros(1, 3, size, size), torch.zeros(1), labels)
        self._build = False

    def _get(self, name: str, *shape: int) -> Tensor:
        if self._build:
            value = torch.randn(shape, generator=self._rng)
            if len(shape) > 1:
                value = value * math.prod(shape[1:]) ** -0.5
            else:
                value = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
            self.state[name] = value
        return self.state[name]

    def _conv(self, name: str, x: Tensor, out: int, kernel: int = 3, stride: int = 1) -> Tensor:
        weight = self._get(f"{name}.weight", out, x.shape[1], kernel, kernel)
        bias = self._get(f"{name}.bias", out)
        return F.conv2d(x, weight, bias, stride=stride, padding=kernel // 2)

    def _linear(self, name: str, x: Tensor, out: int) -> Tensor:
        weight = self._get(f"{name}.weight", out, x.shape[1])
        return F.linear(x, weight, self._get(f"{name}.bias", out))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight, bias = self._get(f"{name}.weight", channels), self._get(f"{name}.bias", channels)
        return F.group_norm(x, 32, weight, bias, eps=1e-5)

    def _res(self, name: str, x: Tensor, emb: Tensor, out: int, change: str = "") -> Tensor:
        h = F.silu(self._norm(f"{name}.in_layers.0", x))
        if change == "up":
            h, x = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        elif change == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self._conv(f"{name}.in_layers.2", h, out)
        width = 2 * out if self.s.scale_shift else out
        e = self._linear(f"{name}.emb_layers.1", F.silu(emb), width)[:, :, None, None]
        if self.s.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = self._norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self._norm(f"{name}.out_layers.0", h + e)
        h = self._conv(f"{name}.out_layers.3", F.silu(h), out)
        if x.shape[1] != out:
            x = self._conv(f"{name}.skip_connection", x, out, kernel=1)
        return x + h

    def _attend(self, name: str, x: Tensor) -> Tensor:
        rows, channels = x.shape[:2]
        flat = x.reshape(rows, channels, -1)
        heads = self.s.num_heads
        if name.startswith("output") and self.s.num_heads_upsample != -1:
            heads = self.s.num_heads_upsample
        if self.s.head_channels != -1:
            heads = channels // self.s.head_channels
        size = channels // heads
        weight = self._get(f"{name}.qkv.weight", 3 * channels, channels, 1)
        qkv = F.conv1d(
            self._norm(f"{name}.norm", flat), weight, self._get(f"{name}.qkv.bias", 3 * channels)
        )
        if self.s.new_order:
            q, k, v = (p.reshape(rows, heads, size, -1) for p in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(rows, heads, 3 * size, -1).split(size, 2)
        mix = torch.softmax(torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(size), -1)
        found = torch.einsum("nhts,nhcs->nhct", mix, v).reshape(rows, channels, -1)
        weight = self._get(f"{name}.proj_out.weight", channels, channels, 1)
        found = F.conv1d(found, weight, self._get(f"{name}.proj_out.bias", channels))
        return (flat + found).reshape(x.shape)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        s, width = self.s, self.s.channels
        half = width // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = torch.cat([angles.cos(), angles.sin()], 1)
        emb = self._linear("time_embed.0", emb, 4 * width)
        emb = self._linear("time_embed.2", F.silu(emb), 4 * width)
        if s.classes and y is not None:
            emb = emb + self._get("label_emb.weight", s.classes, 4 * width)[y]
        widths = [int(m * width) for m in s.mult]
        skips, k, stride = [], 0, 1

        def keep(kind: str, value: Tensor) -> Tensor:
            self.blocks[f"{kind}.{k}"] = value
            return value

        h = keep("input_blocks", self._conv("input_blocks.0.0", x, widths[0]))
        skips.append(h)
        for level, channels in enumerate(widths):
            for _ in range(s.depth):
                k += 1
                h = self._res(f"input_blocks.{k}.0", h, emb, channels)
                if stride in s.attention:
                    h = self._attend(f"input_blocks.{k}.1", h)
                skips.append(keep("input_blocks", h))
            if level < len(widths) - 1:
                k, stride = k + 1, stride * 2
                if s.updown:
                    h = self._res(f"input_blocks.{k}.0", h, emb, channels, "down")
                else:
                    h = self._conv(f"input_blocks.{k}.0.op", h, channels, stride=2)
                skips.append(keep("input_blocks", h))
        h = self._res("middle_block.0", h, emb, widths[-1])
        h = self._attend("middle_block.1", h)
        h = self._res("middle_block.2", h, emb, widths[-1])
        self.blocks["middle_block"] = h
        k = 0
        for level in reversed(range(len(widths))):
            for j in range(s.depth + 1):
                h = self._res(
                    f"output_blocks.{k}.0", torch.cat([h, skips.pop()], 1), emb, widths[level]
                )
                child = 1
                if stride in s.attention:
                    h, child = self._attend(f"output_blocks.{k}.1", h), 2
                if level and j == s.depth:
                    if s.updown:
                        h = self._res(f"output_blocks.{k}.{child}", h, emb, widths[level], "up")
                    else:
                        h = F.interpolate(h, scale_factor=2, mode="nearest")
                        h = self._conv(f"output_blocks.{k}.{child}.conv", h, widths[level])
                    stride //= 2
                keep("output_blocks", h)
                k += 1
        return self._conv("out.2", F.silu(self._norm("out.0", h)), 6 if s.learn_sigma else 3)


def posterior(
    betas: np.ndarray, timestep: int, *, x_t: Tensor, x0: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and log variance of q(x_{t-1} | x_t, x_0), the latter between its two bounds.

    Args:
        betas: float64 (T,).
        variance: the network's variance channels in [-1, 1] ("learned range").

    Source: DDPM eq. 7; Nichol and Dhariwal 2021 eq. 15.
    """
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    beta, bar_t, bar_b = float(betas[timestep]), float(bar[timestep]), float(before[timestep])
    mean = (beta * math.sqrt(bar_b) / (1 - bar_t)) * x0
    mean = mean + ((1 - bar_b) * math.sqrt(1 - beta) / (1 - bar_t)) * x_t
    small = betas * (1 - before) / (1 - bar)
    # The first posterior variance is 0; the official code uses the second in its place.
    low = math.log(float(small[timestep] if timestep else small[1]))
    share = (variance + 1) * 0.5
    return mean, share * math.log(beta) + (1 - share) * low
