"""Random views: what they keep, what they change, and that every sample has its own."""

from __future__ import annotations

import pytest
import torch

from distill.configs.methods import AugmentConfig
from distill.data.views import LUMA, crop_and_mirror, jitter, random_view

NOTHING = AugmentConfig(crop_scale=[1.0, 1.0], flip=0.0, jitter=[0.0] * 4, grayscale=0.0)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def pictures(count: int = 8, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_nothing_asked_for_changes_nothing() -> None:
    images = pictures() * 2 - 1
    torch.testing.assert_close(random_view(images, NOTHING, **HALF), images, atol=1e-5, rtol=1e-5)


def test_mirroring_is_exact() -> None:
    images = pictures()
    mirrored = crop_and_mirror(images, scale=(1.0, 1.0), mirror=1.0)
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=1e-5)


def test_every_sample_gets_a_crop_of_its_own_inside_the_image() -> None:
    ramp = torch.linspace(0, 1, 16).expand(64, 3, 16, 16).contiguous()
    torch.manual_seed(0)
    crops = crop_and_mirror(ramp, scale=(0.2, 0.2), mirror=0.5)
    assert crops.min() >= 0 and crops.max() <= 1
    wide = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]).abs()  # of the image, about
    assert wide.min() > 0.2 and wide.max() < 0.7, "sqrt(0.2 * 3/4) .. sqrt(0.2 * 4/3)"
    assert len({round(value, 4) for value in wide.tolist()}) > 50
    assert 16 < (crops[:, 0, 0, -1] < crops[:, 0, 0, 0]).sum() < 48, "half of them mirrored"


def test_gray_is_the_luma_and_alike_in_all_channels() -> None:
    images = pictures()
    config = AugmentConfig(jitter=[0.0] * 4, grayscale=1.0)
    gray = jitter(images, config)
    expected = torch.einsum("c,bchw->bhw", torch.tensor(LUMA), images)
    for channel in range(3):
        torch.testing.assert_close(gray[:, channel], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("place", "keeps"), [(2, "luma"), (3, "luma"), (1, "mean")])
def test_each_change_keeps_what_it_should(place: int, keeps: str) -> None:
    strengths = [0.0] * 4
    strengths[place] = 0.4
    images = 0.3 + 0.4 * pictures()
    torch.manual_seed(0)
    config = AugmentConfig(jitter=strengths, jitter_chance=1.0, grayscale=0.0)
    changed = jitter(images, config)
    assert not torch.allclose(changed, images, atol=1e-2)
    luma = [torch.einsum("c,bchw->bhw", torch.tensor(LUMA), x) for x in (images, changed)]
    if keeps == "mean":
        luma = [value.mean(dim=(1, 2)) for value in luma]
    torch.testing.assert_close(luma[0], luma[1], atol=3e-3, rtol=0)


def test_a_full_turn_of_hue_is_none_and_the_chance_is_kept() -> None:
    images = pictures(200)
    torch.manual_seed(0)
    config = AugmentConfig(jitter=[0.4, 0.4, 0.4, 0.1], jitter_chance=0.5, grayscale=0.0)
    changed = (jitter(images, config) - images).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 70 < changed.sum() < 130


def test_the_seed_decides() -> None:
    images, config = pictures(), AugmentConfig()
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(random_view(images, config, **HALF))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
