import dataclasses

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.schema import (
    FeatureBatch,
    Level,
    Pins,
    Recipe,
    canonical_json,
    check_name,
    covers_levels,
    digest_of,
    source_covers,
    without,
)

LEVEL = Level("up.1.t100", "feature", "up.1", 100, 0, "", 4, (128, 8, 8), "float16")


def recipe(**content: object) -> Recipe:
    base: dict[str, object] = {"levels": [{"name": "a"}], "source": {"kind": "k", "count": 10}}
    return Recipe("ddpm", {**base, **content}, {"samples_per_unit": 8})


@pytest.mark.parametrize("name", ["up.1.t100", "b16", "w", "A_b-9", "a" * 128])
def test_names_that_may_be_folders(name: str) -> None:
    assert check_name(name, what="level name") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "../a", "a\\b", "a b", "é", "a\n", "a" * 129, 3, None]
)
def test_names_that_may_not(name: object) -> None:
    with pytest.raises(DataError, match="level name: got"):
        check_name(name, what="level name")


def test_a_level_survives_json() -> None:
    assert Level.from_dict(LEVEL.to_dict()) == LEVEL
    assert LEVEL.to_dict()["shape"] == [128, 8, 8]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "image"),
        ("name", "zarr.json"),
        ("name", "../x"),
        ("kind", "picture"),
        ("dtype", "object"),
        ("dtype", "complex64"),
        ("shape", (0, 3)),
        ("shape", (-1,)),
        ("shape", (1 << 40, 1 << 40)),
        ("shape", (1,) * 9),
    ],
)
def test_a_level_refuses(field: str, value: object) -> None:
    with pytest.raises(DataError, match="level"):
        dataclasses.replace(LEVEL, **{field: value})


@pytest.mark.parametrize(
    "change", [{"shape": "8"}, {"shape": [1.5]}, {"timestep": "3"}, {"draw": True}, {"tap": 1}]
)
def test_a_level_from_a_strange_file_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Level.from_dict({**LEVEL.to_dict(), **change})
    with pytest.raises(DataError, match="exactly the fields"):
        Level.from_dict({"name": "a"})


def test_pins_from_a_strange_file_are_refused() -> None:
    good = {"micro_batch": 4, "compute_dtype": "float32", "device": "cpu", "threads": 1}
    assert Pins.from_dict(good) == Pins(4, "float32", "cpu", 1)
    for bad in ({**good, "threads": 0}, {**good, "device": 1}, {"micro_batch": 4}, [1]):
        with pytest.raises(DataError, match="pins: got"):
            Pins.from_dict(bad)


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert digest_of({"x": 1, "y": 2}) == digest_of({"y": 2, "x": 1})
    for bad in (float("nan"), float("inf"), {1, 2}, b"x", object()):
        with pytest.raises(DataError, match="recipe"):
            canonical_json({"a": bad})


def test_keys_are_golden() -> None:
    r = recipe()
    assert r.content_key == "89a9dc2a76c19917071e00648276d5c9141f710ecc1f39854650a24f3998cd37"
    assert r.folder == f"ddpm-{r.content_key[:12]}-{r.layout_key[:6]}"


def test_the_keys_follow_content_and_layout() -> None:
    r = recipe()
    assert recipe(seed=1).content_key != r.content_key
    assert recipe(seed=1).family_key != r.family_key
    assert recipe(levels=[]).family_key == r.family_key
    assert recipe(source={}).family_key == r.family_key
    assert Recipe("other", r.content, r.layout).content_key == r.content_key
    assert without(r.content, "levels") == {"source": {"kind": "k", "count": 10}}


@pytest.mark.parametrize("count", [None, 0, -1, "8", 2.0, True, 1 << 40])
def test_absurd_unit_sizes_are_refused(count: object) -> None:
    with pytest.raises(DataError, match="samples_per_unit"):
        _ = Recipe("a", {}, {"samples_per_unit": count}).samples_per_unit


def test_a_recipe_covers_fewer_levels() -> None:
    more = recipe(levels=[{"name": "a"}, {"name": "b"}])
    assert covers_levels(more, recipe())
    assert not covers_levels(recipe(), more)
    assert not covers_levels(recipe(levels=[{"name": "a", "pool": "mean"}]), recipe())


def test_a_source_that_grew_at_its_end_is_covered() -> None:
    old = recipe(source={"kind": "folder", "count": 10, "digest": "d10"})
    new = recipe(source={"kind": "folder", "count": 15, "digest": "d15"})
    asked: list[int] = []

    def prefix(count: int) -> str:
        asked.append(count)
        return f"d{count}"

    assert source_covers(old, new, prefix_digest=prefix) and asked == [10]
    assert not source_covers(old, new)
    assert not source_covers(new, old, prefix_digest=prefix)
    assert not source_covers(old, new, prefix_digest=lambda _: "other")
    assert source_covers(old, old)


def test_the_codec_of_a_level() -> None:
    r = Recipe("a", {}, {"codecs": {"up.1.t100": "float16"}})
    assert r.codec_of(LEVEL) == "float16"
    assert Recipe("a", {}, {}).codec_of(LEVEL) == "raw"
    with pytest.raises(DataError, match="codecs"):
        Recipe("a", {}, {"codecs": [1]}).codec_of(LEVEL)


def test_a_batch_knows_its_length() -> None:
    batch = FeatureBatch(np.arange(3), ["a", "b", "c"], np.ones(3, bool), None, {})
    assert len(batch) == 3 and batch.error == {} and batch.label is None
