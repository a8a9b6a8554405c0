"""Read-out heads on a student's maps: UPerNet's and FCN's.

The same UPerNet head is the student's logit head in label distillation and the read-out of
segmentation, so that its weights can be carried over. It is that of segmentation-models-pytorch.

Shapes: B images, K classes; maps (B, C_l, h_l, w_l), finest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

DROPOUT = 0.1


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
