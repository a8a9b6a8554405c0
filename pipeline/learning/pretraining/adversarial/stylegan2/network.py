"""StyleGAN2's networks for training: stored as the official code stores them, computed as ours.

The inference networks hold what they compute with: weights with their gains in them, once. In
training every step changes the weights ("equalised learning rate" is their scale), so the very same
networks hold the official tensors here, and each pass computes with what `bake` makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.learning.pretraining.adversarial.sync import own_share, whole_batch
from pipeline.teachers.gan.stylegan2.baked import bake
from pipeline.teachers.gan.stylegan2.discriminator import Discriminator
from pipeline.teachers.gan.stylegan2.layers import (
    Convolution,
    Dense,
    Filter,
    Modulated,
    SynthesisLayer,
)
from pipeline.teachers.gan.stylegan2.layout import (
    DiscriminatorLayout,
    GeneratorLayout,
    MappingLayout,
)
from pipeline.teachers.gan.stylegan2.synthesis import Generator, SynthesisBlock

TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
MADE = ("squares", "taps")
"""Tensors of our networks that are not among the official ones."""


class TrainedGenerator(nn.Module):
    """A generator that learns; its `network` holds the official tensors under official names.

    Args:
        layout: the architecture.
        seed: of the initial weights.
        half: compute convolutions in bfloat16.
    """

    def __init__(self, layout: GeneratorLayout, *, seed: int, half: bool = False) -> None:
        super().__init__()
        self.layout, self.in_half = layout, half
        self.network = Generator(layout)
        for layer in self.network.synthesis.noisy_layers():
            del layer.noise_strength  # of the network that learns it is a parameter
            layer.noise_strength = nn.Parameter(torch.zeros(()))
        begin(self.network, layout.mapping, seed=seed)

    def forward(
        self, z: Tensor, labels: Tensor | None, noise: list[Tensor] | str
    ) -> tuple[Tensor, Tensor]:
        """Map z float32 (N, Z) and labels int64 (N,) to images (N, 3, R, R), and w (N, W).

        Args:
            noise: const, none, or float32 (N, 1, side, side) of every noisy layer.
        """
        mapping, residual = self.layout.mapping, self.layout.architecture == "resnet"
        baked = baked_tensors(self.network, mapping, residual=residual, half=self.in_half)
        classes = None if labels is None else F.one_hot(labels, mapping.classes).float()
        parts = {name: _below(baked, f"{name}.") for name in ("mapping", "synthesis")}
        with _no_autocast(z):
            w = functional_call(self.network.mapping, parts["mapping"], (z, classes, None))
            ws = w[:, None].expand(-1, self.layout.layers, -1)
            return functional_call(self.network.synthesis, parts["synthesis"], (ws, noise)), w


class TrainedDiscriminator(nn.Module):
    """A discriminator that learns; minibatch statistics are those of the whole batch.

    Args:
        layout: the architecture.
        seed: of the initial weights.
        half: compute convolutions in bfloat16.
    """

    def __init__(self, layout: DiscriminatorLayout, *, seed: int, half: bool = False) -> None:
        super().__init__()
        self.layout, self.in_half = layout, half
        self.network = Discriminator(layout)
        self.network.b4.share = own_share
        self.network.b4.whole = whole_batch
        begin(self.network, layout.mapping, seed=seed)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Map images (N, 3, R, R) in [-1, 1] and labels int64 (N,) to logits (N, 1)."""
        mapping, residual = self.layout.mapping, self.layout.architecture == "resnet"
        baked = baked_tensors(self.network, mapping, residual=residual, half=self.in_half)
        told = None
        if mapping is not None and labels is not None:
            told = F.one_hot(labels, mapping.classes).float()
        with _no_autocast(images):
            judging = _Judging(self.network)
            return functional_call(judging, _above(baked, "network."), (images, told))


class _Judging(nn.Module):
    """Let a call be a judgement."""

    def __init__(self, network: Discriminator) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, classes: Tensor | None) -> Tensor:
        """Return the official logits."""
        return self.network.judge(images, classes)


def baked_tensors(
    network: nn.Module, mapping: MappingLayout | None, *, residual: bool, half: bool
) -> dict[str, Tensor]:
    """Return what a network computes with, as functions of the official tensors that it holds.

    Args:
        network: ours, holding official tensors.
        mapping: of it, if there is one.
        residual: whether blocks have shortcuts.
        half: bring convolutions to bfloat16; the epilogue, styles and w stay precise.
    """
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    plain = {
        name: value.double() if name.startswith("mapping.") and "w_avg" not in name else value
        for name, value in held.items()
        if not name.endswith(".squares")
    }
    bake(plain, network, mapping=mapping, residual=residual)
    if half:
        for name, part in network.named_modules():
            if isinstance(part, Modulated) or (isinstance(part, Convolution) and "b4." not in name):
                for last in ("weight", "bias"):
                    if f"{name}.{last}" in plain:
                        plain[f"{name}.{last}"] = plain[f"{name}.{last}"].bfloat16()
    return plain


def official_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's official tensors by their official names, without the filters."""
    return {
        name: value.detach()
        for name, value in network.state_dict().items()
        if name.rpartition(".")[2] not in MADE
    }


@torch.no_grad()
def begin(network: nn.Module, mapping: MappingLayout | None, *, seed: int) -> None:
    """Give a network its initial official tensors: weights of unit deviation, biases 0.

    Source: Karras et al. 2018, section 4.1; StyleGAN2-ADA's code (style biases 1, noise 0).
    """
    drawn = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=drawn))

    for name, part in network.named_modules():
        if isinstance(part, Dense | Modulated | Convolution):
            normal(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, Dense) and mapping is not None and name.startswith("mapping.fc"):
            part.weight.div_(mapping.multiplier)
        if isinstance(part, Modulated):
            normal(part.affine.weight)
            nn.init.ones_(part.affine.bias)
        if isinstance(part, SynthesisLayer):
            part.register_buffer("squares", torch.empty(0), persistent=False)
            if part.noisy:
                normal(cast(Tensor, part.noise_const))
        if isinstance(part, SynthesisBlock) and hasattr(part, "const"):
            normal(part.const)
        if isinstance(part, Filter):
            part.taps = torch.tensor(TAPS)
    if isinstance(network, Generator):
        nn.init.zeros_(cast(Tensor, network.mapping.w_avg))


def _no_autocast(like: Tensor) -> torch.autocast:
    """Leave autocast: what is in half precision is decided part by part, as in inference."""
    return torch.autocast(like.device.type, enabled=False)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _above(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}
