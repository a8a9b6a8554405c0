"""Read-out heads on a student's maps: UPerNet's and FCN's.

The same UPerNet head is the student's logit head in label distillation and the read-out of
segmentation, so that its weights can be carried over. It is that of segmentation-models-pytorch.

Shapes: B images, K classes; maps (B, C_l, h_l, w_l), finest first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.arrays import read_safetensors
from dreamshard.foreign.text import read_json
from dreamshard.permissions import apply_umask
from pipeline.learning.device import apart

DROPOUT = 0.1
WEIGHTS, CARD = "logit_head.safetensors", "logit_head.json"
"""Files of a head kept in its run's folder."""


class UperHead(nn.Module):
    """Pyramid pooling on the deepest map, an FPN to the finest, all maps fused, K logits per cell.

    Args:
        channels: of the student's maps, finest first.
        num_classes: K.
        width: channels inside.

    Raises:
        ModuleNotFoundError: segmentation-models-pytorch is not installed.

    Source: Xiao et al. 2018 (UPerNet); DreamTeacher's segmentation and logit head.
    """

    def __init__(self, channels: Sequence[int], *, num_classes: int, width: int = 256) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        # It expects maps of stride 1 and 2 before those it uses, and at least three in all.
        self.decoder = UPerNetDecoder(
            encoder_channels=[0, 0, *channels],
            encoder_depth=max(3, len(channels) + 1),
            decoder_channels=width,
        )
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits at the finest map's resolution, (B, K, h, w)."""
        nothing = maps[0][:, :0]
        return self.classify(self.dropout(self.decoder([nothing, nothing, *maps])))


class FcnHead(nn.Module):
    """Two convolutions on the deepest map.

    Args:
        channels: of the student's maps, finest first.
        num_classes: K.

    Source: Long et al. 2015, in torchvision's form.
    """

    def __init__(self, channels: Sequence[int], *, num_classes: int) -> None:
        super().__init__()
        from torchvision.models.segmentation.fcn import FCNHead

        self.layers = FCNHead(channels[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits at the deepest map's resolution, (B, K, h, w)."""
        return self.layers(maps[-1])


class PooledHead(nn.Module):
    """A linear classifier on the deepest map, averaged over space: one label per image.

    Args:
        channels: of the student's maps, finest first.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], *, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(channels[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K)."""
        return self.classify(maps[-1].float().mean(dim=(2, 3)))


def save_head(head: UperHead, folder: Path, *, num_classes: int, width: int) -> None:
    """Write a UPerNet head's weights and sizes into a folder."""
    from safetensors.torch import save_file

    weights = apart(head.state_dict(), device="cpu")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    apply_umask(folder / WEIGHTS)
    card = {"num_classes": num_classes, "width": width}
    (folder / CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")


def head_folder(path: Path) -> Path | None:
    """Find the folder of a student's logit head: its run's, or the one it was copied into."""
    return next((each for each in (path, path.parent) if (each / CARD).exists()), None)


def load_head(head: nn.Module, folder: Path | None, *, num_classes: int) -> None:
    """Start a UPerNet head from that of label distillation; its classifier where classes agree.

    Raises:
        ConfigError: the student has no such head, or it is of another width or other maps.
    """
    if folder is None or not (folder / CARD).exists():
        hint = "Train with dreamteacher.mode label or mix, or choose --segmentation.head upernet."
        raise ConfigError(Problem("segmentation.head", "distilled", "a student with one", hint))
    card = read_json(folder / CARD)
    weights = read_safetensors(folder / WEIGHTS)
    if card["num_classes"] != num_classes:
        weights = {k: v for k, v in weights.items() if not k.startswith("classify.")}
    own = head.state_dict()
    if any(name not in own or own[name].shape != value.shape for name, value in weights.items()):
        allowed = f"{card['width']}, the width of {folder / WEIGHTS}"
        raise ConfigError(Problem("segmentation.width", "another head", allowed))
    head.load_state_dict(weights, strict=False)
