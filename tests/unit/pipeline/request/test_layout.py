"""The setting `codec`: one for all levels, or one each, with everything wrong told at once."""

from __future__ import annotations

import dataclasses

import pytest

from dreamshard.errors import ConfigError
from pipeline.request.config import PipelineConfig
from pipeline.request.layout import choose_codecs
from storage.schema import Level

FINE = Level("up.2.t100", "feature", "up.2", 100, 0, "", 4, (64, 8, 8), "float16")
LATE = dataclasses.replace(FINE, name="up.2.t300", timestep=300)
COARSE = dataclasses.replace(FINE, name="up.1.t100", tap="up.1", stride=8, shape=(8, 4, 4))
IDS = Level("ids", "soft_label", "ids", -1, 0, "", 0, (5,), "int64")
LEVELS = [FINE, LATE, COARSE, IDS]


def test_one_codec_is_for_all_levels_of_floats() -> None:
    assert choose_codecs(LEVELS, "int8") == {
        "up.2.t100": "int8",
        "up.2.t300": "int8",
        "up.1.t100": "int8",
        "ids": "raw",
    }


@pytest.mark.parametrize("name", ["float32", "float32+zstd"])
def test_wider_than_what_is_recorded_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"twice the bytes for the same digits: try --codec"):
        choose_codecs(LEVELS, name)
    wide = dataclasses.replace(FINE, dtype="float32")
    assert choose_codecs([wide], name) == {"up.2.t100": name}


def test_the_most_exact_key_counts() -> None:
    setting = {"default": "int4", "s4": "int8", "up.2.t300": "dct16"}
    chosen = choose_codecs(LEVELS, setting)
    assert [chosen[level.name] for level in LEVELS] == ["int8", "dct16", "int4", "raw"]
    assert choose_codecs(LEVELS, {"up.1": "bfloat16"})["up.1.t100"] == "bfloat16"
    assert choose_codecs(LEVELS, {"up.1": "bfloat16"})["up.2.t100"] == "float16"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    setting = {"s16": "int8", "ids": "int4", "up.1": "lowrank9-int4", "s4": "dct9999"}
    with pytest.raises(ConfigError) as caught:
        choose_codecs(LEVELS, setting)
    text = str(caught.value)
    assert "codec.s16: got 'int8', allowed a key of default, up.2.t100, up.2.t300" in text
    assert "codec.ids: got 'int4'" in text
    assert "codec (up.1.t100): got 'lowrank9-int4', allowed a rank up to the level's 8" in text
    assert "codec (up.2.t100): got 'dct9999', allowed a number up to 8192" in text


@pytest.mark.parametrize(
    ("codec", "layout_format", "wrong"),
    [
        ("int3", "zarr", ["codec: got 'int3'"]),
        ({"default": "int3", "s4": "int5"}, "zarr", ["codec.default", "codec.s4"]),
        ({"s4": "int8+zstd", "s8": "dct16"}, "tar", ["codec.s4: got 'int8+zstd'"]),
        ("int8+zstd", "zarr", []),
    ],
)
def test_codecs_are_checked_before_any_teacher_is_looked_at(
    codec, layout_format, wrong: list[str]
) -> None:
    problems = PipelineConfig(codec=codec, format=layout_format).problems()
    assert len(problems) == len(wrong)
    for problem, start in zip(problems, wrong, strict=True):
        assert str(problem).startswith(start)
