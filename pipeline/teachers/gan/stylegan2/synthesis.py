"""StyleGAN2's generator for inference, under the official names of its modules.

Taps: `z`, `w` and `ws` pass through modules of their own; a block gives its features, from before
RGB, and the image so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.stylegan2.layers import Convolution, Filter, SynthesisLayer, ToRGB
from pipeline.teachers.gan.stylegan2.layout import GeneratorLayout
from pipeline.teachers.gan.stylegan2.mapping import Mapping

Noise = Literal["const", "none"] | Sequence[Tensor]
"""const: the network's own; none; or what every layer adds, (N, 1, H, W) each, in order."""


class SynthesisBlock(nn.Module):
    """One resolution: two layers (one at 4 pixels), RGB where the architecture has it."""

    def __init__(self, layout: GeneratorLayout, number: int, low_pass: Filter) -> None:
        super().__init__()
        side, outputs = layout.channels[number]
        inputs = layout.channels[number - 1][1] if number else 0
        residual = layout.architecture == "resnet" and number > 0
        gain = math.sqrt(0.5) if residual else 1.0
        self._low_pass = (low_pass,)
        common = {"activation": layout.activation, "noise": layout.noise}
        if number:
            self.conv0 = SynthesisLayer(
                inputs, outputs, layout.style, side,
                gain=1.0, clamp=layout.clamp, low_pass=low_pass, **common,
            )  # fmt: skip
        else:
            self.const = nn.Parameter(torch.empty(outputs, side, side))
        clamp = None if layout.clamp is None else layout.clamp * gain
        self.conv1 = SynthesisLayer(
            outputs, outputs, layout.style, side, gain=gain, clamp=clamp, low_pass=None, **common
        )
        self.skip = Convolution(inputs, outputs, 1, bias=False) if residual else None
        last = number == len(layout.channels) - 1
        has_rgb = last or layout.architecture == "skip"
        self.torgb = ToRGB(outputs, layout.style, clamp=layout.clamp) if has_rgb else None

    def forward(
        self, x: Tensor, image: Tensor | None, ws: Iterator[Tensor], noise: Iterator[Tensor | None]
    ) -> tuple[Tensor, Tensor | None, Iterator[Tensor]]:
        """Map x (N, C, H, W) and the image so far to those of this resolution.

        Args:
            ws: (N, W) each; RGB takes the one that the next block begins with.
            noise: of the layers, in order.
        """
        low_pass = self._low_pass[0]
        if hasattr(self, "conv0"):
            # Doubling after the 1 x 1 convolution: the two commute, at a quarter of the work.
            short = None if self.skip is None else low_pass.double(self.skip(x))
            x = self.conv0(x, next(ws), next(noise))
            x = self.conv1(x, next(ws), next(noise))
            x = x if short is None else x + short
        else:
            x = self.conv1(x, next(ws), next(noise))
        image = None if image is None else low_pass.double(image)
        if self.torgb is not None:
            following = next(ws)
            rgb = self.torgb(x, following)
            image = rgb if image is None else image + rgb
            ws = _before(following, ws)
        return x, image, ws


def _before(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


class Synthesis(nn.Module):
    """All blocks, from the constant at 4 pixels up."""

    def __init__(self, layout: GeneratorLayout) -> None:
        super().__init__()
        self.layout, self.filter = layout, Filter()
        self.blocks = [f"b{side}" for side, _ in layout.channels]
        for number, name in enumerate(self.blocks):
            setattr(self, name, SynthesisBlock(layout, number, self.filter))

    def noisy_layers(self) -> list[SynthesisLayer]:
        """Return the layers that add noise, in the order they run."""
        return [each for each in self.modules() if isinstance(each, SynthesisLayer) and each.noisy]

    def forward(self, ws: Tensor, noise: Noise) -> Tensor:
        """Map ws (N, layers, W) to images float32 (N, 3, R, R), about in [-1, 1], not clamped."""
        first = self.get_submodule(self.blocks[0])
        x = first.const.expand(len(ws), -1, -1, -1)  # type: ignore[union-attr,operator]
        kind = cast(Tensor, first.conv1.weight).dtype  # type: ignore[union-attr]
        x = x.to(kind, memory_format=torch.channels_last, copy=True)
        told, image = iter(ws.unbind(1)), None
        added = self._noise(noise)
        for name in self.blocks:
            x, image, told = self.get_submodule(name)(x, image, told, added)
        assert image is not None, "the last block has RGB"
        return image

    def _noise(self, noise: Noise) -> Iterator[Tensor | None]:
        if not self.layout.noise or noise == "none":
            while True:
                yield None
        elif isinstance(noise, str):
            for layer in self.noisy_layers():
                yield layer.noise_const  # type: ignore[misc]
        else:
            yield from noise


class Generator(nn.Module):
    """Turn z, classes and instances into images, or w into images."""

    def __init__(self, layout: GeneratorLayout) -> None:
        super().__init__()
        self.layout = layout
        self.mapping = Mapping(layout.mapping, averaged=True)
        self.synthesis = Synthesis(layout)
        self.z, self.w, self.ws = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None,
        features: Tensor | None,
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
        noise: Noise = "const",
    ) -> Tensor:
        """Map latents to images.

        Args:
            z: float32 (N, Z).
            labels: int64 (N,), or float32 (N, K) where classes are mixed.
            features: float32 (N, D), of length 1.
            psi: w is brought towards its mean to this share.
            cutoff: in the first so many layers; None for all.
            noise: see `Noise`.
        """
        classes = labels
        if labels is not None and not labels.is_floating_point():
            classes = F.one_hot(labels, self.layout.mapping.classes).float()
        w = self.w(self.mapping(self.z(z), classes, features))
        return self.from_w(self.truncate(w, psi=psi, cutoff=cutoff), noise=noise)

    def truncate(self, w: Tensor, *, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Spread w (N, W) over the layers (N, layers, W), truncated."""
        layers = self.layout.layers
        ws = w[:, None].repeat(1, layers, 1)
        if psi != 1:
            ws[:, :cutoff] = self.mapping.w_avg.lerp(ws[:, :cutoff], psi)  # type: ignore[operator]
        return ws

    def from_w(self, ws: Tensor, *, noise: Noise = "const") -> Tensor:
        """Map ws (N, layers, W) to images, as they are."""
        return self.synthesis(self.ws(ws), noise)
