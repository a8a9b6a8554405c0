"""Multi-layer perceptrons on pooled features: projectors, expanders, predictors."""

from __future__ import annotations

from torch import nn


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
