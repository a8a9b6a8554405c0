"""The Inception v3 of published FID, KID and Inception Scores, from a file that the user has.

The file is the one that torch-fidelity and torchmetrics read, `*inception-2015-12-05-6726825d.pth`,
or its tensors as safetensors: TensorFlow's network of 2015 with 1008 classes. torchvision's weights
are of another network. Nothing is downloaded.

Shapes: N images. Source: Szegedy et al. 2016; Heusel et al. 2017 and their TensorFlow graph, whose
averages leave out the padding, and whose last block takes the maximum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers import weights

SIDE, WIDTH, CLASSES = 299, 2048, 1008
ROWS = 32
"""Images of a pass (count)."""
EPS = 1e-3
A = (
    "branch1x1:64 | branch5x5_1:48 branch5x5_2:64@5x5 | "
    "branch3x3dbl_1:64 branch3x3dbl_2:96@3x3 branch3x3dbl_3:96@3x3 | branch_pool:{pool}"
)
C = (
    "branch1x1:192 | branch7x7_1:{c} branch7x7_2:{c}@1x7 branch7x7_3:192@7x1 | branch7x7dbl_1:{c} "
    "branch7x7dbl_2:{c}@7x1 branch7x7dbl_3:{c}@1x7 branch7x7dbl_4:{c}@7x1 branch7x7dbl_5:192@1x7 | "
    "branch_pool:192"
)
E = (
    "branch1x1:320 | branch3x3_1:384 branch3x3_2a:384@1x3&branch3x3_2b:384@3x1 | "
    "branch3x3dbl_1:448 branch3x3dbl_2:384@3x3 "
    "branch3x3dbl_3a:384@1x3&branch3x3dbl_3b:384@3x1 | branch_pool:192"
)
BLOCKS = {
    "Mixed_5b": A.format(pool=32),
    "Mixed_5c": A.format(pool=64),
    "Mixed_5d": A.format(pool=64),
    "Mixed_6a": "branch3x3:384@3x3/2 | "
    "branch3x3dbl_1:64 branch3x3dbl_2:96@3x3 branch3x3dbl_3:96@3x3/2 | max",
    "Mixed_6b": C.format(c=128),
    "Mixed_6c": C.format(c=160),
    "Mixed_6d": C.format(c=160),
    "Mixed_6e": C.format(c=192),
    "Mixed_7a": "branch3x3_1:192 branch3x3_2:320@3x3/2 | branch7x7x3_1:192 "
    "branch7x7x3_2:192@1x7 branch7x7x3_3:192@7x1 branch7x7x3_4:192@3x3/2 | max",
    "Mixed_7b": E,
    "Mixed_7c": E,
}
"""Block -> its branches (|), their layers in turn as name:channels@kernel/stride, 1x1 where no
kernel is told; layers joined by & see the same and stand side by side. Strided ones do not pad."""
STEM = (
    *("Conv2d_1a_3x3:32@3x3/2", "Conv2d_2a_3x3:32@3x3-", "Conv2d_2b_3x3:64@3x3", "max"),
    *("Conv2d_3b_1x1:80", "Conv2d_4a_3x3:192@3x3-", "max"),
)
"""Layers before the blocks, as there; `-`: without padding."""
LAYER = re.compile(r"(\w+):(\d+)(?:@(\d)x(\d))?(/2|-)?")


class Layer(nn.Module):
    """Convolve, normalise by stored statistics, rectify."""

    def __init__(self, inputs: int, told: str) -> None:
        super().__init__()
        match = LAYER.fullmatch(told)
        assert match is not None, told
        self.name, self.width = match[1], int(match[2])
        high, wide = int(match[3] or 1), int(match[4] or 1)
        padding = (0, 0) if match[5] else (high // 2, wide // 2)
        stride = 2 if match[5] == "/2" else 1
        self.conv = nn.Conv2d(inputs, self.width, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(self.width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to as many channels as it has."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Run branches side by side, as `BLOCKS` tells them."""

    def __init__(self, inputs: int, told: str, *, pool: str) -> None:
        super().__init__()
        self.pool, self.branches, self.width = pool, list[list[list[str]]](), 0
        for branch in told.split(" | "):
            width, chain = inputs, list[list[str]]()
            for step in branch.split() if branch != "max" else ():
                layers = [Layer(width, each) for each in step.split("&")]
                for layer in layers:
                    self.add_module(layer.name, layer)
                chain.append([layer.name for layer in layers])
                width = sum(layer.width for layer in layers)
            self.branches.append(chain)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the branches' channels one after the other."""
        return torch.cat([self._branch(x, chain) for chain in self.branches], 1)

    def _branch(self, x: Tensor, chain: list[list[str]]) -> Tensor:
        if not chain:
            return F.max_pool2d(x, 3, 2)
        if chain[0] == ["branch_pool"]:
            mean = self.pool == "mean"
            x = (
                F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
                if mean
                else F.max_pool2d(x, 3, 1, 1)
            )
        for names in chain:
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        return x


class Network(nn.Module):
    """Map images (N, 3, 299, 299) in [-1, 1) to pooled features (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for told in STEM:
            if told != "max":
                layer = Layer(width, told)
                self.add_module(layer.name, layer)
                width = layer.width
        for name, told in BLOCKS.items():
            block = Mixed(width, told, pool="max" if name == "Mixed_7c" else "mean")
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features before the classifier."""
        for told in STEM:
            x = (
                F.max_pool2d(x, 3, 2)
                if told == "max"
                else self.get_submodule(told.split(":")[0])(x)
            )
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class Inception:
    """Turn images uint8 (N, H, W, 3) into features (N, 2048), and these into logits.

    Args:
        path: of the weights.

    Raises:
        TeacherError: they cannot be read, or are of another network.
    """

    def __init__(self, path: Path) -> None:
        with torch.device("meta"):
            module = Network()
        own = module.state_dict()
        counters = {n: torch.zeros((), dtype=torch.int64) for n in own if n.endswith("_tracked")}
        state = counters | weights.read((path,))  # old files do not count batches
        weights.load_into(module, state, where=str(path), dtype=torch.float32)
        self._network = module

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return pooled features of images of any size, float32 (N, 2048)."""
        return np.concatenate([part.numpy() for part in self._parts(images)])

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits (N, 1008) without the classifier's bias, as published scores take them."""
        return features @ self._network.fc.weight.numpy().T

    def _parts(self, images: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(images), ROWS):
            x = torch.from_numpy(images[start : start + ROWS]).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                yield self._network((resized(x) - 128) / 128)


def resized(x: Tensor, side: int = SIDE) -> Tensor:
    """Bring images (N, 3, H, W) to a side bilinearly as TensorFlow 1 did.

    Pixel i of the result lies at i x H / side of the image: no half pixels, no antialiasing.
    """
    down, across = (_ways(length, side) for length in x.shape[2:])
    return down @ x @ across.T


def _ways(length: int, side: int) -> Tensor:
    """Return how much of each pixel goes into each of the result, (side, length)."""
    place = torch.arange(side) * (length / side)
    low = place.floor().long().clamp(max=length - 1)
    share = (place - low).float()[:, None]
    eye = torch.eye(length)
    return (1 - share) * eye[low] + share * eye[(low + 1).clamp(max=length - 1)]
