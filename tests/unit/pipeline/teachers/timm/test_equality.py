"""What is recorded is what timm's own `features_only` and `forward_features` give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.teachers.timm.choice import SETTINGS
from pipeline.teachers.timm.outline import CLASS, FINAL, POOLED
from pipeline.teachers.timm.teacher import describe
from tests.unit.pipeline.teachers.timm.networks import make, save

CONVOLUTIONAL = (
    "resnet10t regnetx_002 lcnet_035 mobilenetv3_small_050 tinynet_e mnasnet_small ghostnet_050 "
    "convnext_atto convnextv2_atto edgenext_xx_small ese_vovnet19b_dw starnet_s1 mobilevitv2_050 "
    "dla46_c"
)
PLAIN = (
    "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 vit_small_patch14_reg4_dinov2 "
    "vit_small_patch16_dinov3 eva02_tiny_patch14_224 xcit_nano_12_p16_224"
)
HIERARCHICAL = "swin_tiny_patch4_window7_224 pvt_v2_b0 pit_ti_224 mambaout_femto efficientvit_b0"
SMALL = {
    "vit_tiny_patch16_224": {"depth": 4},
    "vit_small_patch14_reg4_dinov2": {"depth": 4},
    "vit_small_patch16_dinov3": {"depth": 4},
    "eva02_tiny_patch14_224": {"depth": 4},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 24},
}
"""The same code with fewer blocks, so that all of them take seconds."""


@pytest.mark.parametrize("name", [*CONVOLUTIONAL.split(), *PLAIN.split(), *HIERARCHICAL.split()])
def test_equal_to_timm(name: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = dict(SMALL.get(name, {}))
    size = 56 if "patch14" in name else 64
    if timm.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = size
    whole = save(tmp_path, name, **arguments)
    listed = [tap.name for tap in describe(tmp_path, SETTINGS, (size, size)).taps]
    teacher = make(tmp_path, listed, size)
    known = teacher.network.module.known
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        ours = teacher.activations(images)
        maps, indices = features_only(name, whole, images, arguments)
        theirs = whole.forward_features(images)  # type: ignore[operator]
        pooled = whole.forward_head(theirs, pre_logits=True)  # type: ignore[operator]
    for index, found in zip(indices, maps, strict=True):
        mine = ours[known.map_name(index)]
        if found.shape != mine.shape:  # timm leaves some transformers' channels last
            found = found.permute(0, 3, 1, 2)
        torch.testing.assert_close(mine, found, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[POOLED], pooled, atol=1e-5, rtol=1e-5)
    if known.final is None:  # a class token alone comes out at the end
        assert theirs.ndim == 2 or theirs.shape[1] <= 2
        return
    final = ours[FINAL]
    if CLASS in ours:
        assert torch.equal(ours[CLASS], theirs[:, 0])
    if theirs.ndim == 3:  # tokens behind those of class and registers, row by row
        rows, columns = final.shape[-2:]
        theirs = theirs[:, -rows * columns :].reshape(2, rows, columns, -1).permute(0, 3, 1, 2)
    elif theirs.shape != final.shape:
        theirs = theirs.permute(0, 3, 1, 2)
    torch.testing.assert_close(final, theirs, atol=1e-5, rtol=1e-5)


def features_only(
    name: str, whole: torch.nn.Module, images: torch.Tensor, arguments: dict[str, Any]
) -> tuple[list[torch.Tensor], list[int]]:
    """Return timm's maps of the same weights, and their numbers."""
    overlay = {"state_dict": whole.state_dict(), "num_classes": whole.num_classes}
    network = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
    ).eval()
    return network(images), list(network.feature_info.out_indices)
