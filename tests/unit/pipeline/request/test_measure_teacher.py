"""What a teacher's features know, by teachers whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dreamshard.errors import ConfigError
from pipeline.request.measure_teacher import IMAGE, format_measured, measure
from storage.schema import FeatureBatch


class Known:
    """Give maps whose corner tells the class, or what it is told to give."""

    def __init__(self, give: Any) -> None:
        self.give = give

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        assert len(images) == 32, "whole passes"
        return _batch(indices, levels=self.give(images))

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        return _batch(indices, image=self.give(indices))


def known(give: Any) -> Any:
    return Known(give)


def _batch(indices: np.ndarray, **given: Any) -> FeatureBatch:
    empty: dict[str, Any] = {"key": [], "valid": np.ones(len(indices), bool), "image": None}
    return FeatureBatch(index=indices, **{"levels": {}, **empty, **given})


def made(count: int = 45) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = labels * 80
    return images, labels


def told(mode: str, taps: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"modes": (mode,), "levels": None, "taps": taps, "extractor": "pixels"}


def test_both_poolings_find_what_lies_there() -> None:
    images, labels = made()

    def give(seen: np.ndarray) -> dict[str, np.ndarray]:
        corner = np.eye(3)[seen[:, 0, 0, 0] // 80]
        maps = np.zeros((len(seen), 3, 8, 8), np.float16)
        maps[:, :, :2, :2] = corner[:, :, None, None]
        return {"map": maps, "hidden": maps - maps.mean((2, 3), keepdims=True), "vector": corner}

    found = measure(lambda *_: known(give), images, labels, **told("encode"))
    mean, cells = "mean over space", "means of 4x4 cells"
    assert found.probes["map"] == {mean: 100, cells: 100}
    assert found.probes["hidden"][mean] < 70 and found.probes["hidden"][cells] == 100
    assert found.probes["vector"] == {mean: 100}
    assert "hidden" in format_measured(found, "pixels") and not found.distances


def test_reconstructions_are_judged_against_the_next_image() -> None:
    images, _ = made()

    def same(seen: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: (seen.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)}

    def grey(seen: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: np.zeros((len(seen), 3, 8, 8), np.float32)}

    for give, expected in ((same, 0.0), (grey, 1.0)):
        found = measure(lambda *_, give=give: known(give), images, None, **told("encode", (IMAGE,)))
        assert found.relative_l1 == pytest.approx(expected, abs=1e-6)
        assert found.sheet.startswith(b"\x89PNG") and not found.probes


def test_samples_are_as_many_as_images() -> None:
    images, labels = made()
    asked: list[int] = []

    def draw(indices: np.ndarray) -> np.ndarray:
        asked.extend(indices)
        return images[indices % len(images)]

    found = measure(lambda *_: known(draw), images, labels, **told("synthesize"))
    assert asked == list(range(64)) and found.distances["Fréchet distance"] < 1e-6


def test_what_tells_nothing_is_refused() -> None:
    images, _ = made()
    with pytest.raises(ConfigError, match="images: got no labels"):
        measure(lambda *_: known(None), images, None, **told("encode"))
    with pytest.raises(ConfigError, match="samples: got 8"):
        measure(lambda *_: known(None), images[:8], None, **told("encode"))
    with pytest.raises(ConfigError, match="extractor: got pixel"):
        measure(
            lambda *_: known(None), images, None, **{**told("synthesize"), "extractor": "pixel"}
        )
