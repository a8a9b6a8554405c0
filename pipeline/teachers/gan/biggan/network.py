"""The generator of BigGAN, BigGAN-deep and IC-GAN, for inference.

Spectral normalisation is applied to the weights once, on loading. Modules carry the names of the
official state dict, so that hooks and checkpoints speak one language.

Shapes: N samples, z (N, Z), condition y (N, Y) per block (int64 (N,) where every block has tables
of its own), maps (N, C, H, W). Source: Brock et al. 2019, appendix B; BigGAN-PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan import spectral
from pipeline.teachers.gan.biggan.layout import BigGANLayout, Block

OUTPUT_EPS = 1e-5  # of the last normalisation in the official codes, whatever their flags say


class StoredNorm(nn.Module):
    """Normalise by stored statistics: one scale and one shift per channel, in float32."""

    def __init__(self, channels: int, *, eps: float, additive: bool) -> None:
        super().__init__()
        self.eps, self.additive = eps, additive
        self.register_buffer("stored_mean", torch.empty(channels))
        self.register_buffer("stored_var", torch.empty(channels))

    def normalise(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Scale and shift x (N, C, H, W) once; gain and bias float32 (N or 1, C)."""
        inverse = (cast(Tensor, self.stored_var) + self.eps).rsqrt()
        scale = inverse[None] if self.additive else gain * inverse
        shift = bias - cast(Tensor, self.stored_mean) * scale + (gain if self.additive else 0)
        scale, shift = (each[:, :, None, None].to(x.dtype) for each in (scale, shift))
        return torch.addcmul(shift, x, scale)


class ConditionalNorm(StoredNorm):
    """Take gain and bias from the condition: linearly, or from tables of a class's own."""

    def __init__(self, channels: int, layout: BigGANLayout, eps: float) -> None:
        super().__init__(channels, eps=eps, additive=layout.additive)
        self.gain, self.bias = (
            nn.Linear(layout.condition, channels, bias=False)
            if layout.condition
            else nn.Embedding(layout.classes, channels)
            for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map x (N, C, H, W) and the condition y to (N, C, H, W)."""
        return self.normalise(x, 1 + self.gain(y), self.bias(y))


class OutputNorm(StoredNorm):
    """Have gain and bias as plain parameters."""

    def __init__(self, channels: int, *, eps: float, additive: bool) -> None:
        super().__init__(channels, eps=eps, additive=additive)
        self.gain, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.normalise(x, self.gain[None], self.bias[None])


class GBlock(nn.Module):
    """BigGAN's residual block: two 3x3 convolutions, the first after doubling the size."""

    def __init__(self, block: Block, layout: BigGANLayout, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(block.inputs, block.outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(block.outputs, block.outputs, 3, padding=1)
        self.conv_sc = nn.Conv2d(block.inputs, block.outputs, 1)
        self.bn1 = ConditionalNorm(block.inputs, layout, eps)
        self.bn2 = ConditionalNorm(block.outputs, layout, eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', 2H, 2W)."""
        h = self.conv1(_double(F.relu(self.bn1(x, y))))
        h = self.conv2(F.relu(self.bn2(h, y)))
        # A 1x1 convolution and nearest enlargement may change places: a quarter of the work.
        return h + _double(self.conv_sc(x))


class DeepGBlock(nn.Module):
    """BigGAN-deep's bottleneck block; its shortcut drops channels instead of projecting them."""

    def __init__(self, block: Block, layout: BigGANLayout, eps: float) -> None:
        super().__init__()
        self.outputs, self.upsample = block.outputs, block.upsample
        self.conv1 = nn.Conv2d(block.inputs, block.hidden, 1)
        self.conv2 = nn.Conv2d(block.hidden, block.hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(block.hidden, block.hidden, 3, padding=1)
        self.conv4 = nn.Conv2d(block.hidden, block.outputs, 1)
        self.bn1 = ConditionalNorm(block.inputs, layout, eps)
        self.bn2, self.bn3, self.bn4 = (
            ConditionalNorm(block.hidden, layout, eps) for _ in range(3)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or (N, C', 2H, 2W) at the end of a stage."""
        h = self.conv1(F.relu(self.bn1(x, y)))
        h = F.relu(self.bn2(h, y))
        x = x[:, : self.outputs]
        if self.upsample:
            h, x = _double(h), _double(x)
        h = self.conv3(F.relu(self.bn3(self.conv2(h), y)))
        return self.conv4(F.relu(self.bn4(h, y))) + x


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)


class Attention(nn.Module):
    """Self-attention over cells; keys and values at half the size, logits not divided."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        seen = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        seen = seen.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        return self.gamma * self.o(seen) + x


class BigGANGenerator(nn.Module):
    """Turn latents, classes and instance features into images.

    Args:
        layout: the architecture.
        eps: of the blocks' normalisation (BN_eps).
        output_eps: of the last normalisation.
    """

    def __init__(self, layout: BigGANLayout, *, eps: float, output_eps: float = OUTPUT_EPS) -> None:
        super().__init__()
        self.layout = layout
        if layout.shared:
            self.shared = nn.Embedding(layout.classes, layout.shared)
        if layout.features:
            self.shared_feat = nn.Linear(layout.features, layout.shared_features)
        first = layout.condition if layout.deep else layout.chunk or layout.latent
        self.linear = nn.Linear(first, layout.blocks[0].inputs * layout.bottom**2)
        kind = DeepGBlock if layout.deep else GBlock
        self.first = nn.Unflatten(1, (-1, layout.bottom, layout.bottom))
        self.blocks = nn.ModuleList()
        for block in layout.blocks:
            parts: list[nn.Module] = [kind(block, layout, eps)]
            if block.attention:
                parts.append(Attention(block.outputs))
            self.blocks.append(nn.ModuleList(parts))
        last = layout.blocks[-1].outputs
        self.output_layer = nn.Sequential(
            OutputNorm(last, eps=output_eps, additive=layout.additive),
            nn.ReLU(),
            nn.Conv2d(last, 3, 3, padding=1),
        )

    def forward(self, z: Tensor, labels: Tensor | None, features: Tensor | None) -> Tensor:
        """Map z float32 (N, Z), labels int64 (N,) and features float32 (N, D) to images.

        Returns:
            (N, 3, H, W) in [-1, 1]. What the generator is not conditioned on is ignored.
        """
        first, conditions = self._conditions(z, labels, features)
        convolution = cast(nn.Conv2d, cast(nn.ModuleList, self.blocks[0])[0].conv1)
        kind = cast(Tensor, convolution.bias).dtype  # its weight, read, takes a step of its norm
        x = self.first(self.linear(first).to(kind))
        x = x.to(memory_format=torch.channels_last)
        for parts, y in zip(self.blocks, conditions, strict=True):
            block, *attention = cast(nn.ModuleList, parts)
            x = block(x, y)
            for attend in attention:
                x = attend(x)
        return torch.tanh(self.output_layer(x))

    def _conditions(
        self, z: Tensor, labels: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what the first map and every block are told."""
        layout, count = self.layout, len(self.layout.blocks)
        if not layout.embedded:
            return z, [cast(Tensor, labels)] * count
        told = [self.shared(labels)] if layout.shared else []
        told += [self.shared_feat(features)] if layout.features else []
        if layout.deep:
            both = torch.cat([*told, z], dim=1)
            return both, [both] * count
        if not layout.chunk:
            return z, [torch.cat(told, dim=1)] * count
        first, *rest = z.split(layout.chunk, dim=1)
        return first, [torch.cat([*told, part], dim=1) for part in rest]


def plain_weights(
    state: Mapping[str, Tensor], layout: BigGANLayout, *, eps: float, where: str
) -> dict[str, Tensor]:
    """Divide a generator's weights by their spectral norm and name them as our modules do.

    Args:
        state: an official state dict, in any of its spellings of the stored statistics.
        layout: of the generator.
        eps, where: as `divided_weights`, which also says what is raised.
    """
    plain = {_own_name(n): v for n, v in divided_weights(state, eps=eps, where=where).items()}
    unused = [] if layout.shared else ["shared."]
    unused += [] if layout.features else ["shared_feat."]
    return {n: v for n, v in plain.items() if not n.startswith(tuple(unused))}


def divided_weights(state: Mapping[str, Tensor], *, eps: float, where: str) -> dict[str, Tensor]:
    """Divide weights by their spectral norm and drop what inference does not need.

    In evaluation the official code takes one step of power iteration from the stored `u0` and does
    not keep it: v = normalize(u0 W), sigma = |W v|. `sv0` is a log, not sigma.

    Args:
        state: an official state dict.
        eps: SN_eps, the least length that a vector is divided by.
        where: names the file in errors.

    Raises: TeacherError if vectors and weights do not fit together.
    """
    state = {n: value.float() if value.is_floating_point() else value for n, value in state.items()}
    dropped = re.compile(r"accumulation_counter|num_batches_tracked|(u|sv)\d+")
    plain = {}
    for name, value in state.items():
        base, _, last = name.rpartition(".")
        if dropped.fullmatch(last):
            continue
        if last == "weight" and (u := state.get(f"{base}.u0")) is not None:
            at = f"{where}: {base}.u0"
            value = value / spectral.one_step(value.flatten(1), u, eps=eps, where=at)
        count = state.get(f"{base}.accumulation_counter")
        if count is not None and last in ("stored_mean", "stored_var") and float(count) > 0:
            value = value / count  # sums over batches ("standing statistics") until divided
        plain[name] = value
    return plain


def _own_name(name: str) -> str:
    """Spell a tensor as our modules do: three ways to store statistics, and IC-GAN's last norm."""
    name = name.replace(".bn.running_", ".stored_").replace(".bn.stored_", ".stored_")
    last_norm = {"output_layer.0.bn.weight": "gain", "output_layer.0.bn.bias": "bias"}
    return f"output_layer.0.{last_norm[name]}" if name in last_norm else name
