"""Features of a small CIFAR classifier, in which samples of 32 pixels are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamshard.foreign.arrays import read_safetensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = 9  # per stage of a ResNet-56 for CIFAR (He et al. 2016, section 4.2)
ROWS = 250


class CifarFeatures:
    """A CIFAR ResNet-56 with option-A shortcuts: uint8 (N, 32, 32, 3) to pooled features (N, 64).

    Args:
        path: of its weights in safetensors.

    Raises:
        ValueError: they are not those of such a network.
    """

    def __init__(self, path: str) -> None:
        self.w = read_safetensors(Path(path))
        if "layer3.8.bn2.weight" not in self.w:
            raise ValueError(f"{path}: no ResNet-56 for CIFAR")

    def _layer(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, self.w[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = self.w[f"{norm}.running_mean"], self.w[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, self.w[f"{norm}.weight"], self.w[f"{norm}.bias"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return pooled features of images."""
        starts = range(0, len(images), ROWS)
        return np.concatenate([self._features(images[at : at + ROWS]) for at in starts])

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        x = self._layer(x, "conv1", "bn1").relu()
        for stage in (1, 2, 3):
            for block in range(BLOCKS):
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self._layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
                y = self._layer(y, f"{name}.conv2", f"{name}.bn2")
                if stride == 2:  # option A: every other pixel, missing channels are zero
                    side = (y.shape[1] - x.shape[1]) // 2
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
                x = (x + y).relu()
        return x.mean((2, 3)).numpy()

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Return the share classified right, to see that the network is read as it was made."""
        head = self.w["linear.weight"].numpy(), self.w["linear.bias"].numpy()
        return float(((features @ head[0].T + head[1]).argmax(1) == labels).mean())
