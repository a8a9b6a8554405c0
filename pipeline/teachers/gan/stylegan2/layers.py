"""Layers of StyleGAN2, for inference: gains are in the weights, filters are separable.

Two things make them faster than they are usually written: styles scale the input and demodulation
the output, so that one convolution serves the whole batch; and an activation's gain is in what
comes before it, since leaky ReLUs commute with positive factors. Shapes: N samples, maps
(N, C, H, W). Source: Karras et al. 2020 (StyleGAN2), sections 2 and 4 and appendix B.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEMODULATION_EPS = 1e-8
SLOPE = 0.2
GAINS = {"lrelu": math.sqrt(2), "relu": math.sqrt(2), "linear": 1.0}
"""Gain that each activation is followed by."""


def activate(x: Tensor, kind: str, clamp: float | None) -> Tensor:
    """Apply an activation, its gain already in x, then a clamp to +-`clamp`; in place.

    Where gradients go through it, the activation's output is kept for them and clamped in a copy.
    """
    if kind == "lrelu":
        x = F.leaky_relu_(x, SLOPE)
    elif kind == "relu":
        x = F.relu_(x)
    if x.requires_grad:
        return x if clamp is None else x.clamp(-clamp, clamp)
    return x if clamp is None else x.clamp_(-clamp, clamp)


class Filter(nn.Module):
    """The separable low-pass filter that goes with every change of resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", torch.empty(4))

    def blur(self, x: Tensor, pad: int, *, gain: float = 1.0, stride: int = 1) -> Tensor:
        """Filter a map padded by zeros on every side; keep every `stride`-th cell."""
        taps = cast(Tensor, self.taps).to(x.dtype) * math.sqrt(gain)
        channels = x.shape[1]
        down = taps.view(1, 1, 4, 1).expand(channels, 1, 4, 1)
        across = taps.view(1, 1, 1, 4).expand(channels, 1, 1, 4)
        x = F.conv2d(x, down, padding=(pad, 0), stride=(stride, 1), groups=channels)
        return F.conv2d(x, across, padding=(0, pad), stride=(1, stride), groups=channels)

    def double(self, x: Tensor) -> Tensor:
        """Enlarge a map (N, C, H, W) to (N, C, 2H, 2W)."""
        taps = cast(Tensor, self.taps).to(x.dtype) * 2
        channels = x.shape[1]
        kernel = (taps[:, None] * taps).expand(channels, 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)

    def halve(self, x: Tensor) -> Tensor:
        """Shrink a map (N, C, H, W) to (N, C, H/2, W/2)."""
        return self.blur(x, 1, stride=2)


class Modulated(nn.Module):
    """A convolution whose input channels a style scales.

    Args:
        inputs, outputs: channels.
        style: numbers of w.
        kernel: 3, or 1 for RGB.
    """

    def __init__(self, inputs: int, outputs: int, style: int, kernel: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))


class SynthesisLayer(Modulated):
    """Convolve, add noise and bias, activate; where `filter` is given, after doubling the size.

    Args:
        side: of its maps (cells).
        clamp: of its outputs, the gain of its block in it.
    """

    def __init__(
        self, inputs: int, outputs: int, style: int, side: int, *,
        activation: str, clamp: float | None, gain: float, noise: bool, low_pass: Filter | None,
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, style, 3)
        self.side, self.activation, self.clamp = side, activation, clamp
        self.gain = GAINS[activation] * gain
        self.noisy = noise
        self._low_pass = (low_pass,)  # in a tuple: its taps are the network's, not this layer's
        self.register_buffer("squares", torch.empty(inputs, outputs))
        if noise:
            self.register_buffer("noise_const", torch.empty(side, side))
            self.register_buffer("noise_strength", torch.empty(()))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Map x (N, C, H, W) under w (N, W); noise (N or 1, 1, side, side), None for none."""
        styles = self.affine(w)
        if x.dtype == torch.float16:  # demodulation cancels it; half numbers would overflow
            styles = styles / styles.abs().amax(1, keepdim=True)
        sums = styles.square() @ cast(Tensor, self.squares)
        scale = torch.rsqrt(sums + DEMODULATION_EPS) * self.gain
        x = x * styles[:, :, None, None].to(x.dtype)
        if self._low_pass[0] is not None:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = self._low_pass[0].blur(x, 1, gain=4.0)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        bias = self.bias[None, :, None, None]
        x = torch.addcmul(bias, x, scale[:, :, None, None].to(x.dtype))
        if noise is not None:
            x += (noise * cast(Tensor, self.noise_strength)).to(x.dtype)
        return activate(x, self.activation, self.clamp)


class ToRGB(Modulated):
    """Turn features into a part of the image: one convolution of 1 x 1, not demodulated."""

    def __init__(self, inputs: int, style: int, *, clamp: float | None) -> None:
        super().__init__(inputs, 3, style, 1)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x (N, C, H, W) under w (N, W) to float32 (N, 3, H, W)."""
        # Three outputs: scaling the weights is far less work than scaling the map.
        weight = self.weight[None, :, :, 0, 0] * self.affine(w)[:, None].to(x.dtype)
        rgb = weight @ x.flatten(2) if x.is_contiguous() else self._last(x, weight)
        rgb = rgb.view(len(x), 3, *x.shape[2:]).float() + self.bias[None, :, None, None].float()
        return rgb if self.clamp is None else rgb.clamp_(-self.clamp, self.clamp)

    @staticmethod
    def _last(x: Tensor, weight: Tensor) -> Tensor:
        cells = x.permute(0, 2, 3, 1).flatten(1, 2)
        return (cells @ weight.transpose(1, 2)).transpose(1, 2).contiguous()


class Convolution(nn.Module):
    """A discriminator's convolution: filter and stride where it halves, activation, clamp."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, activation: str = "linear",
        clamp: float | None = None, bias: bool = True, low_pass: Filter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.activation, self.clamp = activation, clamp
        self._low_pass = (low_pass,)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to half the size."""
        low_pass, kernel = self._low_pass[0], self.weight.shape[2]
        if low_pass is None:
            x = F.conv2d(x, self.weight, self.bias, padding=kernel // 2)
        elif kernel == 1:
            x = F.conv2d(low_pass.halve(x), self.weight, self.bias)
        else:
            x = F.conv2d(low_pass.blur(x, 2), self.weight, self.bias, stride=2)
        return activate(x, self.activation, self.clamp)


class Dense(nn.Module):
    """A fully connected layer with its activation, the gain last."""

    def __init__(self, inputs: int, outputs: int, *, activation: str = "linear") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.activation, self.gain = activation, GAINS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I) to (N, O)."""
        if self.activation == "linear":
            return F.linear(x, self.weight, self.bias)
        return activate(x @ self.weight.T + self.bias, self.activation, None) * self.gain
