"""Batches drawn on the training device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError
from pipeline.images import ImageConfig, SourceConfig, open_source
from pipeline.pretrain_config import PretrainConfig
from pipeline.pretraining import data, objective, resident, state
from pipeline.pretraining.data import TrainingImages

THIRD = range(192, 256)
"""Positions of step 3."""


def configure(**changes: object) -> PretrainConfig:
    values: dict[str, object] = {
        "image": ImageConfig(size=16, flip="random"), "batch_size": 64, "draws": "device",
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def images_of(config: PretrainConfig) -> TrainingImages:
    return TrainingImages(open_source(SourceConfig()), config=config.image, seed=0)


@pytest.fixture(scope="module")
def images() -> TrainingImages:
    return images_of(configure())


def held(images: TrainingImages, config: PretrainConfig) -> resident.ResidentImages:
    return resident.ResidentImages(images, config=config, device=torch.device("cpu"))


def test_half_of_the_images_are_mirrored_and_all_are_the_sources(images: TrainingImages) -> None:
    rows = np.arange(64)
    batch = held(images, configure()).batch(rows, THIRD, labels=True)
    assert images.kept is not None
    plain = torch.from_numpy(images.kept[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    same = [torch.equal(a, b) for a, b in zip(batch["images"], plain, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(batch["images"], plain, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48
    still = held(images, configure(image=ImageConfig(size=16)))
    assert torch.equal(still.batch(rows, THIRD, labels=True)["images"], plain)
    assert torch.equal(batch["labels"], torch.from_numpy(images.labels[rows]))  # type: ignore[index]


def test_a_batch_depends_on_its_step_alone(images: TrainingImages) -> None:
    rows, there = np.arange(64), held(images, configure())
    first = there.batch(rows, THIRD, labels=True)
    again = held(images, configure()).batch(rows, THIRD, labels=True)
    other = there.batch(rows, range(256, 320), labels=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise"], other["noise"])
    assert abs(float(first["noise"].mean())) < 0.02 and 0.98 < float(first["noise"].std()) < 1.02


def test_processes_share_one_global_batch(images: TrainingImages) -> None:
    rows, there = np.arange(64), held(images, configure())
    whole = there.batch(rows, THIRD, labels=True)
    halves = (THIRD[:32], rows[:32]), (THIRD[32:], rows[32:])
    parts = [there.batch(samples, places, labels=True) for places, samples in halves]
    for name, value in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name


@pytest.mark.parametrize("kind", ["epsilon", "edm"])
def test_levels_are_those_of_the_objective(images: TrainingImages, kind: str) -> None:
    schedule = objective.schedule_for(kind, "linear", 1000)
    there = held(images, configure(batch_size=4096))
    levels = there.draw_levels(schedule, seed=0, positions=range(8192, 12288))
    part = there.draw_levels(schedule, seed=0, positions=range(8192 + 64, 8192 + 128))
    np.testing.assert_array_equal(part.noise, levels.noise[64:128])
    drawn = objective.draw_levels(schedule, seed=0, positions=range(4096))
    quantiles = [0.1, 0.5, 0.9]
    found, expected = (np.quantile(np.log(x.noise), quantiles) for x in (levels, drawn))
    np.testing.assert_allclose(found, expected, atol=0.15)
    np.testing.assert_allclose(np.quantile(levels.time, 0.5), np.median(drawn.time), rtol=0.1)


def test_what_needs_the_host_is_refused(
    images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = configure(image=ImageConfig(size=16, views=2), crop=8)
    with pytest.raises(ConfigError, match=r"(?s)image.views: got 2 with draws device.*crop: got 8"):
        held(images, views)
    monkeypatch.setattr(data, "KEEP_BYTES", 100)
    with pytest.raises(ConfigError, match="draws: got device, allowed a set whose"):
        held(images_of(configure()), configure())


def test_the_recipe_knows_who_drew() -> None:
    keys = {state.recipe_key(configure(draws=draws), {}) for draws in ("host", "device")}
    assert len(keys) == 2
    assert state.recipe_key(configure(compile=True), {}) in keys
    assert state.recipe_key(configure(minutes=2.0), {}) not in keys


def test_folders_are_no_part_of_it(tmp_path: Path) -> None:
    one, two = (configure(out=str(tmp_path / name)) for name in ("a", "b"))
    assert state.recipe_key(one, {}) == state.recipe_key(two, {})
