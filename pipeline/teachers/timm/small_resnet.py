"""A ResNet for small images, whose first map keeps the image's resolution."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models import FeatureInfo
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

MOST_BLOCKS, MOST_CHANNELS = 1000, 1 << 15
"""Of a network, and of one of its stages: more is a slip, or an attack on whoever builds it."""


class CifarResNet(nn.Module):
    """Build a ResNet with a 3x3 stem without stride or pooling: strides 1, 2, 4, 8.

    timm's ResNets have a stem of stride 2 built in, which an image of 16 or 32 pixels cannot
    afford. Parameters are named as in torchvision's ResNets.

    Args:
        depths: basic blocks per stage; four stages of two make a ResNet-18.
        widths: channels per stage.
        out_indices: stages whose outputs are returned, all if None; later ones are not built.
        zero_init_last: start each block as its shortcut (last batch norm's scale zero).

    Raises:
        ValueError: depths and widths of different lengths, negative or beyond any use.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        out_indices: Sequence[int] | None = None,
        zero_init_last: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths but {len(widths)} widths, one each per stage")
        if min(depths) < 0 or sum(depths) > MOST_BLOCKS:
            raise ValueError(f"{sum(depths)} blocks, 0 to {MOST_BLOCKS} are possible")
        if not 0 < min(widths) <= max(widths) <= MOST_CHANNELS:
            raise ValueError(f"widths {min(widths)} to {max(widths)}, 1 to {MOST_CHANNELS} fit")
        self.out_indices = tuple(range(len(depths)) if out_indices is None else out_indices)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.stage_names: list[str] = []
        channels = widths[0]
        for stage in range(max(self.out_indices) + 1):
            blocks = []
            for number in range(depths[stage]):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_block(channels, widths[stage], stride=stride))
                channels = widths[stage]
            self.stage_names.append(f"layer{stage + 1}")
            self.add_module(self.stage_names[-1], nn.Sequential(*blocks))
        maps = [
            {"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"}
            for stage, width in enumerate(widths)
        ]
        self.feature_info = FeatureInfo(maps, self.out_indices)
        _initialise(self, zero_init_last=zero_init_last)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Say how parameters group into layers, in timm's convention."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1)", "blocks": blocks}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to the outputs of the stages in `out_indices`, finest first."""
        features = self.act1(self.bn1(self.conv1(images)))
        outputs = []
        for stage, name in enumerate(self.stage_names):
            features = self.get_submodule(name)(features)
            if stage in self.out_indices:
                outputs.append(features)
        return outputs


def cifar_resnet18(
    *,
    width: int = 64,
    out_indices: Sequence[int] | None = None,
    zero_init_last: bool = True,
) -> CifarResNet:
    """Build the ResNet-18 for 32-pixel images that the papers train on CIFAR.

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        out_indices, zero_init_last: see `CifarResNet`.

    Source: Squeeze-and-Span (3x3 stem without stride, no max pooling, zero-initialised residuals).
    """
    widths = (width, 2 * width, 4 * width, 8 * width)
    return CifarResNet(widths=widths, out_indices=out_indices, zero_init_last=zero_init_last)


def _block(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = downsample_conv(in_channels, out_channels, 1, stride=stride)
    return BasicBlock(in_channels, out_channels, stride, shortcut)


def _initialise(network: nn.Module, *, zero_init_last: bool) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_last and isinstance(module, BasicBlock):
            module.zero_init_last()
