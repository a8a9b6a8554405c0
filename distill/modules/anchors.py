"""CompRess's anchor queue and key encoder.

Shapes: B samples, K anchors, D dimensions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.learning.ranks import gathered_rows


class AnchorQueue(nn.Module):
    """Keep the embeddings of the last K samples, first in, first out; a part of checkpoints.

    It is the same on every rank: all ranks' rows come in, in the ranks' order. It begins with
    noise: entries uniform in +-sqrt(3/D), so of variance 1/D, rows of a norm around 1.

    Args:
        size: K.
        width: D.

    Source: CompRess's official code (memory bank).
    """

    rows: Tensor
    cursor: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        bound = (3 / width) ** 0.5
        self.register_buffer("rows", torch.empty(size, width).uniform_(-bound, bound))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def anchors(self) -> Tensor:
        """Return a copy (K, D), which what comes in later leaves as it is."""
        return self.rows.clone()

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Put a batch in the place of the oldest rows.

        Args:
            embeddings: (B, D), normalised, this rank's part; of a batch larger than the queue the
                last K stay.
        """
        every = gathered_rows(embeddings.detach().float())
        size = len(self.rows)
        numbers = torch.arange(len(every), device=every.device)[-size:]
        self.rows.index_copy_(0, (self.cursor + numbers) % size, every[-size:])
        self.cursor.copy_((self.cursor + len(every)) % size)


class KeyEncoder(nn.Module):
    """Follow a student: the moving average of its parameters, with buffers of its own.

    It computes as in evaluation, but for batch norm, which takes each batch's statistics.

    Args:
        student: what it begins as.
        momentum: share of itself that it keeps per step.

    Source: CompRess's official code.
    """

    def __init__(self, student: nn.Module, *, momentum: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(student)
        self.encoder.requires_grad_(False)
        self.momentum = momentum

    def train(self, mode: bool = True) -> KeyEncoder:
        """Set batch norm's mode; all else stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if not isinstance(module, _BatchNorm):
                module.training = False
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the deepest map's mean, float32 (B, C)."""
        return self.encoder(images)[-1].float().mean(dim=(2, 3))

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move towards a student: keep `momentum` of itself, and take the rest of it."""
        for mine, its in zip(self.encoder.parameters(), student.parameters(), strict=True):
            mine.lerp_(its.to(mine.dtype), 1 - self.momentum)
