"""Flips and crops that image and maps undergo together, and where they are refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig
from distill.data import paired
from distill.data.open import open_training_set
from distill.data.paired import Pairs, cropped, pair_problems
from distill.train import train
from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from tests.unit.distill.small_data import LEVELS

STRIDES = {"fine": 1, "coarse": 4}


def batch(count: int = 8, size: int = 16) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images, themselves as a map of stride 1, and their corners as one of stride 4."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, {"fine": images.clone(), "coarse": images[:, :, ::4, ::4].clone()}


def pairs(**changes: Any) -> Pairs:
    settings: dict[str, Any] = {
        "seed": 3,
        "rank": 0,
        "strides": STRIDES,
        "mirror": False,
        "size": (16, 16),
        "crop": None,
        "grid": 4,
    }
    return Pairs(**(settings | changes))


def test_image_and_maps_are_mirrored_alike() -> None:
    images, targets = batch(64)
    flipped, maps = pairs(mirror=True)(images, targets, position=0)
    assert torch.equal(flipped, maps["fine"])
    turned = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    assert 16 < turned.sum() < 48
    assert torch.equal(maps["coarse"][turned], targets["coarse"][turned].flip(-1))
    assert torch.equal(maps["coarse"][~turned], targets["coarse"][~turned])


def test_image_and_maps_are_cut_alike() -> None:
    images, targets = batch(32)
    cut, maps = pairs(crop=(8, 4))(images, targets, position=0)
    assert cut.shape == (32, 3, 8, 4) and maps["coarse"].shape == (32, 3, 2, 1)
    assert torch.equal(cut, maps["fine"])
    assert torch.equal(cut[:, :, ::4, ::4], maps["coarse"])
    corners = {tuple(row[:, 0, 0].tolist()) for row in cut}
    assert len(corners) > 20, "every sample has a window of its own"


def test_every_window_on_the_grid_is_drawn_to_the_edge() -> None:
    places = np.arange(256, dtype=np.uint64)
    drawn = pairs(crop=(8, 12))
    assert set(drawn._corners(places, 0)) == {0, 4, 8}
    assert set(drawn._corners(places, 1)) == {0, 4}


def test_windows_follow_positions_at_any_number_of_ranks() -> None:
    images, targets = batch(8)
    whole = pairs(crop=(8, 8), mirror=True)
    expected, _ = whole(images, targets, position=40)
    halves = []
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        part = {name: value[rows] for name, value in targets.items()}
        halves.append(replace(whole, rank=rank)(images[rows], part, position=40)[0])
    assert torch.equal(torch.cat(halves), expected)
    assert not torch.equal(whole(images, targets, position=48)[0], expected)


def test_a_level_shrinks_with_the_crop() -> None:
    assert cropped(LEVELS[0], (8, 12)).shape == (12, 2, 3)
    assert cropped(LEVELS[0], None) is LEVELS[0]


def teacher_of(kind: str) -> Any:
    recipe = SimpleNamespace(content={"teacher": {"kind": kind}})
    return SimpleNamespace(recipe=recipe, image_size=(16, 16))


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("unet", True), ("ssgan.discriminator", True), ("dit", False), ("timm", False)],
)
def test_only_convolutional_teachers_mirror(kind: str, allowed: bool) -> None:
    config = DataConfig(dataset="x", flip="mirror")
    problems = pair_problems(config, source=teacher_of(kind), levels=LEVELS)
    assert (not problems) == allowed
    if problems:
        assert f"features of a {kind!r} teacher do not mirror" in str(problems[0])
        assert "--image.flip random" in str(problems[0])
    assert not pair_problems(config, source=teacher_of(kind), levels=[]), "images alone may"


def test_crops_off_the_grid_or_too_large_are_refused(dataset: Dataset) -> None:
    for crop in ([6, 8], [8, 32]):
        with pytest.raises(ConfigError, match=r"data\.crop.*multiples of 4 .*at most 16 and 16"):
            open_training_set(DataConfig(dataset=dataset.url, crop=crop))


def test_a_run_on_crops_and_mirrors_trains_at_the_crops_size(
    configure, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.students.card import read_card

    monkeypatch.setattr(paired, "MIRRORING", ("boxes",))
    data = DataConfig(dataset=dataset.url, crop=[8, 12], flip="mirror")
    folder = train(configure(data=data, steps=2))
    card, _ = read_card(folder)
    assert card.image_size == [8, 12]
    training_set = open_training_set(data)
    assert [level.shape for level in training_set.levels] == [(8, 4, 6), (12, 2, 3)]


def test_the_hash_is_uniform() -> None:
    drawn = paired._mix(np.arange(40_000, dtype=np.uint64), 7, 0)
    shares = np.bincount((drawn >> np.uint64(60)).astype(int), minlength=16) / 40_000
    assert np.abs(shares - 1 / 16).max() < 0.006


def test_labels_of_images_set_no_grid(dataset: Dataset) -> None:
    whole = replace(LEVELS[0], name="kind", kind="soft_label", stride=0, shape=(3,))
    config = DataConfig(dataset=dataset.url, crop=[7, 9])
    assert not pair_problems(config, source=dataset, levels=[whole])
