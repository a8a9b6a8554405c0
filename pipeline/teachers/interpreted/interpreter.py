"""The feature interpreter: a small head that reads labels out of a frozen teacher's features.

Trained by `dreamshard interpret` on a few labelled images, kept as FOLDER/interpreter.safetensors
and interpreter.json, attached to its teacher with `teacher.interpreter: FOLDER`: encode and
synthesize then record its logits as soft labels (see `soft_labels.py`).

Shapes: B samples, K classes, width W; level l has (C_l, h_l, w_l).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamshard.permissions import apply_umask
from dreamshard.runfolder import write_text
from pipeline.teachers import weights
from pipeline.teachers.interpreted.card import (
    CARD,
    WEIGHTS,
    InterpreterCard,
    Target,
    read_interpreter_card,
)


class Norm(nn.Sequential):
    """Group normalisation and Swish."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.GroupNorm(norm_groups(channels), channels), nn.SiLU())


class Fusion(nn.Module):
    """Bring one level to the width, join it with the coarser ones' sum and mix the two.

    1x1 convolution of this level; the previous result, bilinearly enlarged, beside it; a depth-wise
    separable 3x3 convolution of both; group normalisation and Swish after each.
    """

    def __init__(self, channels: int, *, width: int, first: bool) -> None:
        super().__init__()
        self.lateral = nn.Sequential(nn.Conv2d(channels, width, 1), Norm(width))
        joined = width if first else 2 * width
        self.mix = nn.Sequential(
            nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False),
            nn.Conv2d(joined, width, 1),
            Norm(width),
        )

    def forward(self, features: Tensor, coarser: Tensor | None) -> Tensor:
        """Map (B, C, h, w) and the coarser levels' (B, W, h', w') to (B, W, h, w)."""
        fused = self.lateral(features)
        if coarser is not None:
            above = F.interpolate(coarser, size=fused.shape[-2:], mode="bilinear")
            fused = torch.cat([fused, above], dim=1)
        return self.mix(fused)


class Interpreter(nn.Module):
    """Fuse a teacher's levels from coarse to fine and classify every cell, or the whole image.

    Args:
        levels: level name to channels, coarsest first.
        num_classes: K, 2 or more.
        width: channels inside; 256 in the paper.
        dropout: share of features dropped before the last layer; 0.1 in the paper.
        target: "mask" gives logits per cell of the finest level, "label" per image.

    Source: DreamTeacher, appendix (feature interpreter).
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        *,
        num_classes: int,
        width: int = 256,
        dropout: float = 0.1,
        target: Target = "mask",
    ) -> None:
        super().__init__()
        self.level_names, self.target = tuple(levels), target
        self.fusions = nn.ModuleList(
            Fusion(channels, width=width, first=number == 0)
            for number, channels in enumerate(levels.values())
        )
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map {level name: float (B, C, h, w)} to logits, float (B, K, h, w) or (B, K)."""
        fused: Tensor | None = None
        for name, fusion in zip(self.level_names, self.fusions, strict=True):
            fused = fusion(features[name], fused)
        assert fused is not None
        if self.target == "label":
            fused = fused.mean(dim=(2, 3), keepdim=True)
        logits = self.classify(self.dropout(fused))
        return logits.flatten(1) if self.target == "label" else logits


def norm_groups(channels: int) -> int:
    """Return the groups of the group normalisation: 32, or the most up to 32 that divide them."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


def build_interpreter(card: InterpreterCard) -> Interpreter:
    """Build the network that a card describes, with untrained weights."""
    return Interpreter(
        {level.name: level.shape[0] for level in card.inputs},
        num_classes=len(card.classes),
        width=card.width,
        dropout=card.dropout,
        target=card.target,
    )


def save_interpreter(folder: Path, interpreter: Interpreter, *, card: InterpreterCard) -> None:
    """Write an interpreter's weights, then the card that marks them as whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    state = {name: value.cpu().contiguous() for name, value in interpreter.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    apply_umask(folder / WEIGHTS)
    write_text(folder / CARD, json.dumps(asdict(card), indent=2) + "\n")


def load_interpreter(folder: Path) -> tuple[Interpreter, InterpreterCard]:
    """Load an interpreter in evaluation mode, frozen.

    Raises:
        ConfigError: nothing at that path.
        TeacherError: damaged files, or weights that do not fit the card.
    """
    card = read_interpreter_card(folder)
    interpreter, where = build_interpreter(card), folder / WEIGHTS
    weights.load_into(interpreter, weights.read([where]), where=str(where))
    return interpreter, card
