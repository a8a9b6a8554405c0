"""Multi-layer perceptrons on pooled features: projectors, expanders, predictors, T_phi.

Shapes: B samples, C features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def hidden_layers(features: int, width: int, *, count: int, bias: bool = True) -> list[nn.Module]:
    """Return `count` times a linear layer, batch norm and ReLU.

    Args:
        features: of the input.
        width: of every layer.
        count: how many, 0 or more.
        bias: of the linear layers.
    """
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Linear(features, width, bias=bias), nn.BatchNorm1d(width), nn.ReLU()]
        features = width
    return layers


def projector(features: int, width: int, *, layers: int) -> nn.Sequential:
    """Return Squeeze-and-Span's projector: hidden layers as wide as its input, then a linear one.

    Args:
        features: of the input and of the hidden layers.
        width: of the output.
        layers: linear layers in all.
    """
    hidden = hidden_layers(features, features, count=layers - 1, bias=False)
    return nn.Sequential(*hidden, nn.Linear(features, width, bias=False))


class SqueezeModule(nn.Module):
    """Squeeze a teacher's vectors into one embedding: a linear layer each, their sum, an MLP.

    Args:
        features: of every vector.
        hidden: width inside.
        width: of the embedding.
        layers: linear layers of the MLP.

    Source: Squeeze-and-Span, section 4.1 (T_phi); sizes as in the official code.
    """

    def __init__(self, features: Sequence[int], *, hidden: int, width: int, layers: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList(nn.Linear(count, hidden) for count in features)
        inner = hidden_layers(hidden, hidden, count=layers - 1, bias=False)
        self.mlp = nn.Sequential(*inner, nn.Linear(hidden, width))

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Map vectors (B, C_l) to (B, width)."""
        entered = [entry(vector) for entry, vector in zip(self.entries, vectors, strict=True)]
        return self.mlp(torch.stack(entered).sum(dim=0))
