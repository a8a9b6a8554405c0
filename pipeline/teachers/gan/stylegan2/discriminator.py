"""StyleGAN2's discriminator for inference, under the official names of its modules.

Minibatch statistics make the official network's last layers depend on which images share a batch.
Here the statistic is one number, the same for every image: that of an image on its own (a standard
deviation of 0, which the official network turns into 1e-4), or a number that is given. The official
statistics of a whole batch are kept for comparison alone (`judge`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.stylegan2.layers import Convolution, Dense, Filter
from pipeline.teachers.gan.stylegan2.layout import DiscriminatorLayout
from pipeline.teachers.gan.stylegan2.mapping import Mapping

DEVIATION_EPS = 1e-8
ALONE = math.sqrt(DEVIATION_EPS)
"""The statistic of a batch of one."""


class Block(nn.Module):
    """One resolution: a convolution, then one that halves; with a shortcut in `resnet`."""

    def __init__(self, layout: DiscriminatorLayout, number: int, low_pass: Filter) -> None:
        super().__init__()
        _, inputs, outputs = layout.channels[number]
        self._low_pass = (low_pass,)
        residual, skip = layout.architecture == "resnet", layout.architecture == "skip"
        gain = math.sqrt(0.5) if residual else 1.0
        style = {"activation": layout.activation, "clamp": layout.clamp}
        self.fromrgb = Convolution(3, inputs, 1, **style) if skip or not number else None
        self.conv0 = Convolution(inputs, inputs, 3, **style)
        clamp = None if layout.clamp is None else layout.clamp * gain
        self.conv1 = Convolution(
            inputs, outputs, 3, activation=layout.activation, clamp=clamp, low_pass=low_pass
        )
        self.skip = (
            Convolution(inputs, outputs, 1, bias=False, low_pass=low_pass) if residual else None
        )
        self.shrinks = skip

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (None at first) and the image to those of half the size."""
        if self.fromrgb is not None:
            seen = self.fromrgb(image)
            x = seen if x is None else x + seen
            image = self._low_pass[0].halve(image) if self.shrinks else image
        assert x is not None, "the first block sees the image"
        short = None if self.skip is None else self.skip(x)
        out: Tensor = self.conv1(self.conv0(x))
        return (out if short is None else out + short), image


class Epilogue(nn.Module):
    """The last layers, at 4 x 4 cells."""

    def __init__(self, layout: DiscriminatorLayout) -> None:
        super().__init__()
        inputs, self.layout = layout.channels[-1][2], layout
        style = {"activation": layout.activation, "clamp": layout.clamp}
        self.fromrgb = Convolution(3, inputs, 1, **style) if layout.architecture == "skip" else None
        self.conv = Convolution(inputs + layout.statistics, layout.width, 3, **style)
        self.fc = Dense(layout.width * 16, layout.width, activation=layout.activation)
        self.out = Dense(layout.width, layout.outputs)
        self.whole: Callable[[Tensor], Tensor] = _as_it_is
        self.share: Callable[[Tensor], Tensor] = _as_it_is

    def forward(self, x: Tensor, image: Tensor, statistic: float | None) -> Tensor:
        """Map features (N, C, 4, 4) to (N, outputs); statistic None: that of the batch."""
        if self.fromrgb is not None:
            x = x + self.fromrgb(image)
        count = self.layout.statistics
        if count:
            if statistic is None:
                told = self._of_batch(x, count)
            else:
                told = x.new_full((len(x), count, *x.shape[2:]), statistic)
            x = torch.cat([x, told], 1)
        return self.out(self.fc(self.conv(x).flatten(1)))

    def _of_batch(self, x: Tensor, count: int) -> Tensor:
        """Return the mean standard deviation of each group of images: (N, count, H, W).

        Several processes that train it have shares of a batch: `whole` stacks them, `share` takes
        this process's again.
        """
        x = self.whole(x)
        group = min(self.layout.group or len(x), len(x))
        rows, channels, height, width = x.shape
        groups = x.reshape(group, rows // group, count, channels // count, height, width)
        spread = groups.var(0, unbiased=False).add(DEVIATION_EPS).sqrt().mean((2, 3, 4))
        return self.share(spread[:, :, None, None].repeat(group, 1, height, width))


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Discriminator(nn.Module):
    """Look at images: features per block, the pooled feature, logits.

    Args:
        layout: the architecture.
        statistic: what the channel of minibatch statistics holds.
    """

    def __init__(self, layout: DiscriminatorLayout, *, statistic: float = ALONE) -> None:
        super().__init__()
        self.layout, self.statistic, self.filter = layout, statistic, Filter()
        self.blocks = [f"b{side}" for side, _, _ in layout.channels]
        for number, name in enumerate(self.blocks):
            setattr(self, name, Block(layout, number, self.filter))
        self.b4 = Epilogue(layout)
        if layout.mapping is not None:
            self.mapping = Mapping(layout.mapping, averaged=False)
        self.logits = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, R, R) in [-1, 1] to logits (N, K) under every class, (N, 1) of none."""
        out = self._features(images, self.statistic)
        mapping = self.layout.mapping
        if mapping is None or mapping.features:  # an instance's logit is not asked for
            return self.logits(out)
        every = torch.eye(mapping.classes, device=out.device)
        return self.logits(self._compare(out, every, None))

    def judge(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Return the official logits (N, 1), minibatch statistics of these very images in them.

        Args:
            images: (N, 3, R, R) in [-1, 1].
            classes: float32 (N, K), one number a class.
            features: float32 (N, D), instances (IC-GAN).
        """
        out = self._features(images, None)
        if self.layout.mapping is None:
            return out
        told = self.mapping(None, classes, features)
        return (out * told).sum(1, keepdim=True) / math.sqrt(out.shape[1])

    def _compare(self, out: Tensor, classes: Tensor, features: Tensor | None) -> Tensor:
        told = self.mapping(None, classes, features)
        return F.linear(out, told) / math.sqrt(out.shape[1])

    def _features(self, images: Tensor, statistic: float | None) -> Tensor:
        kind = self.get_submodule(self.blocks[0]).conv0.weight.dtype  # type: ignore[union-attr]
        image = images.to(kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = None
        for name in self.blocks:
            x, image = self.get_submodule(name)(x, image)
        assert x is not None
        return self.b4(x.float(), image.float(), statistic)
