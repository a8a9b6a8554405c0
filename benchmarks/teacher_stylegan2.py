"""StyleGAN2 for `teacher.py`: a file of random weights, and the generator as it is usually written.

The plain one is the usual PyTorch port: weights modulated per sample and run as one grouped
convolution, a 4 x 4 filter after every doubling, equalised learning rates on every pass, forward
hooks on the blocks. Both get the same latents and give images and features in float16.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.door import open_teacher
from pipeline.teachers.recording.outbox import Outbox
from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import FIR, Reference

BASE = 4096
"""Channels of a block times its resolution, up to the width (an eighth of the official 32768)."""


class Shaped(Reference):
    """Random weights of the official proportions."""

    def width(self, side: int) -> int:
        """Return the channels of a block."""
        return min(BASE // side, self.c)


def save(folder: Path, width: int, size: int) -> Reference:
    """Write `network.pkl` into a folder; return what is in it."""
    made = Shaped(side=size, channels=width, z=width, w=width, layers=8, clamp=256.0)
    made.write(folder / "network.pkl")
    return made


def blur(x: Tensor, kernel: Tensor, pad: tuple[int, int]) -> Tensor:
    """Filter each channel by a 4 x 4 kernel."""
    channels = x.shape[1]
    return F.conv2d(F.pad(x, pad * 2), kernel.expand(channels, 1, 4, 4), groups=channels)


class Layer(nn.Module):
    """One modulated convolution."""

    def __init__(self, state: dict[str, Tensor], name: str, *, up: bool, rgb: bool = False) -> None:
        super().__init__()
        self.up, self.rgb = up, rgb
        for key in ("weight", "bias", "affine.weight", "affine.bias", "noise_const",
                    "noise_strength"):  # fmt: skip
            if f"{name}.{key}" in state:
                self.register_buffer(key.replace(".", "_"), state[f"{name}.{key}"])
        self.register_buffer("kernel", FIR * 4)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (N, C, H, W)."""
        rows, inputs, height, width = x.shape
        styles = F.linear(w, self.affine_weight / math.sqrt(w.shape[1]), self.affine_bias)
        if self.rgb:
            styles = styles / math.sqrt(inputs)
        weight = self.weight[None] * styles[:, None, :, None, None]
        outputs, size = weight.shape[1], weight.shape[-1]
        if not self.rgb:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, rows * inputs, height, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(rows * inputs, outputs, size, size)
            x = F.conv_transpose2d(x, weight, stride=2, groups=rows)
            x = blur(x.view(rows, outputs, *x.shape[2:]), self.kernel, (1, 1))
        else:
            weight = weight.reshape(rows * outputs, inputs, size, size)
            x = F.conv2d(x, weight, padding=size // 2, groups=rows)
            x = x.view(rows, outputs, height, width)
        if self.rgb:
            return (x + self.bias.view(1, -1, 1, 1)).clamp(-256, 256)
        x = x + self.noise_const * self.noise_strength + self.bias.view(1, -1, 1, 1)
        return (F.leaky_relu(x, 0.2) * math.sqrt(2)).clamp(-256, 256)


class Block(nn.Module):
    """One resolution."""

    def __init__(self, state: dict[str, Tensor], side: int) -> None:
        super().__init__()
        name = f"synthesis.b{side}"
        if side == 4:
            self.register_buffer("const", state[f"{name}.const"])
        else:
            self.conv0 = Layer(state, f"{name}.conv0", up=True)
        self.conv1 = Layer(state, f"{name}.conv1", up=False)
        self.torgb = Layer(state, f"{name}.torgb", up=False, rgb=True)
        self.register_buffer("kernel", FIR * 4)

    def forward(self, x: Any, image: Any, w: Tensor) -> tuple[Tensor, Tensor]:
        """Map features and the image so far."""
        x = self.const.repeat(len(w), 1, 1, 1) if x is None else self.conv0(x, w)
        x = self.conv1(x, w)
        if image is not None:
            rows, channels, height, width = image.shape
            wide = image.new_zeros(rows, channels, height, 2, width, 2)
            wide[:, :, :, 0, :, 0] = image
            image = blur(wide.view(rows, channels, 2 * height, 2 * width), self.kernel, (2, 1))
        rgb = self.torgb(x, w)
        return x, rgb if image is None else image + rgb


def plain(made: Reference, device: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return what a user would write: every block, with hooks."""
    blocks = nn.ModuleDict({f"b{side}": Block(made.g, side) for side in made.sides}).to(device)
    found: dict[str, Tensor] = {}
    for name, block in blocks.items():
        block.register_forward_hook(
            lambda _m, _i, out, name=name: found.__setitem__(name, out[0])  # type: ignore[misc]
        )
    mapped = {name: value.to(device) for name, value in made.g.items() if "mapping" in name}

    @torch.no_grad()
    def run(z: np.ndarray) -> dict[str, np.ndarray]:
        w = made.map(mapped, torch.from_numpy(z).to(device), None, None)
        x = image = None
        for block in blocks.values():
            x, image = block(x, image, w)
        assert image is not None
        pixels = ((image.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        records = {name: value.half().cpu().numpy() for name, value in found.items()}
        return {**records, "image": pixels.contiguous().cpu().numpy()}

    return run


def build_calls(
    options: argparse.Namespace, folder: Path, made: Reference
) -> dict[str, Callable[[], object]]:
    """Make both variants; they are compared first.

    Raises: AssertionError if they do not agree.
    """
    names = [f"b{side}" for side in made.sides]
    ours: Any = open_teacher(
        folder, kind="stylegan2", levels=names, micro_batch=options.batch,
        device=options.device, threads=options.threads,
    )  # fmt: skip
    pooled: Any = open_teacher(
        folder, kind="stylegan2", levels=names, micro_batch=options.batch, pool="gap",
        device=options.device, threads=options.threads,
    )  # fmt: skip
    theirs, indices = plain(made, options.device), np.arange(options.batch)
    expected, got = theirs(ours.inputs(indices)[0]), ours.synthesize(indices)
    for name in names:
        np.testing.assert_allclose(got.levels[name], expected[name], rtol=0.02, atol=0.05)
    return {
        "float32/all/plain": lambda: theirs(ours.inputs(indices)[0]),
        "float32/all/dreamshard": lambda: ours.synthesize(indices),
        "float32/all/pooled": lambda: pooled.synthesize(indices),
    }


def bytes_leaving(call: Callable[[], object]) -> int:
    """Count the bytes of features that one call hands over to the host."""
    taken, original = [], Outbox.__setitem__

    def counted(self: Outbox, name: str, value: Tensor) -> None:
        taken.append(value.nbytes)
        original(self, name, value)

    Outbox.__setitem__ = counted  # type: ignore[method-assign]
    try:
        call()
    finally:
        Outbox.__setitem__ = original  # type: ignore[method-assign]
    return sum(taken)
