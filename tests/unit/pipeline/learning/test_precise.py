"""Whatever must be exact is float32, inside autocast and with halves given."""

from __future__ import annotations

import pytest
import torch

from distill.bench.augment import crop_and_flip
from distill.configs.methods import AugmentConfig
from distill.data.views import random_view
from distill.losses.feature import feature_loss, whiten
from distill.losses.label import from_top_k, resized_logits, soft_cross_entropy
from distill.losses.simsiam import simsiam_loss
from distill.losses.vicreg import covariance, vicreg_loss
from distill.methods.dreamteacher import resize
from pipeline.learning.precise import in_float32

HALVES = [torch.bfloat16, torch.float16]
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return drawn.to(torch.get_default_device())


def moved(images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    return random_view(images, AugmentConfig(jitter=[0.4, 0.4, 0.4, 0.1]), **HALF)


def cropped(images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    masks = torch.full(images[:, 0].shape, 999)  # bfloat16 has no such class
    found, same = crop_and_flip(images, masks, smallest=0.2)
    assert same is not None and (same == 999).all()
    return found


WHAT = {
    "view": lambda: moved(maps(2, 3, 32, 32).clamp(-1, 1)),
    "crop": lambda: cropped(maps(2, 3, 32, 32)),
    "covariance": lambda: covariance(20 * maps(64, 96)),
    "vicreg": lambda: vicreg_loss(maps(8, 16), maps(8, 16, seed=1))["loss"],
    "simsiam": lambda: simsiam_loss(*(maps(8, 16, seed=seed) for seed in range(4))),
    "features": lambda: feature_loss({"a": maps(2, 8, 4, 4)}, {"a": maps(2, 8, 4, 4, seed=1)})[
        "loss"
    ],
    "whiten": lambda: whiten(maps(2, 8, 4, 4)),
    "labels": lambda: soft_cross_entropy(maps(4, 9), maps(4, 9, seed=1)),
    "top-k": lambda: from_top_k(maps(2, 3), torch.tensor([[0, 1, 2]] * 2), num_classes=9),
    "logits": lambda: resized_logits(maps(2, 4, 5, 5), size=(8, 8)),
    "bridge": lambda: resize(maps(2, 4, 5, 5), size=(8, 8)),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("what", WHAT)
def test_the_same_numbers_inside_autocast(what: str, dtype: torch.dtype) -> None:
    before = WHAT[what]()
    with torch.autocast("cpu", dtype=dtype):
        inside = WHAT[what]()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_white_images_of_448_pixels_stay_finite(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        assert moved(torch.ones(1, 3, 448, 448)).isfinite().all()


def test_halves_are_made_float32_wherever_they_are_and_autocast_goes_on_after() -> None:
    @in_float32
    def product(first: torch.Tensor, more: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        assert first.dtype == more["a"][0].dtype == torch.float32
        return first @ more["a"][0]

    half = maps(4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(half, {"a": [half]}).dtype == torch.float32
        assert (half @ half).dtype == torch.bfloat16
    assert product.__name__ == "product"
