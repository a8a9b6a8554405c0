import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamshard.errors import DataError
from storage.codecs.arrays import array_specs, codec_for
from storage.codecs.base import explain_nonfinite, has_nonfinite
from storage.codecs.table import CODECS
from storage.schema import Level, Recipe

LEVEL = Level("up", "feature", "up", 0, 0, "", 4, (3, 2), "float32")


@given(
    hnp.arrays(
        st.sampled_from(["<f2", "<f4", "<f8"]),
        st.integers(0, 40),
        elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
    )
)
def test_nonfinite_values_are_found(values: np.ndarray) -> None:
    assert has_nonfinite(values) == (not np.isfinite(values).all())


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_the_extremes_are_told_apart(dtype: str) -> None:
    info = np.finfo(dtype)
    for value in (info.max, info.min, info.tiny, -0.0, 0.0):
        assert not has_nonfinite(np.array([1, value], dtype))
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        assert has_nonfinite(np.array([1, value], dtype))
    assert not has_nonfinite(np.array([255], np.uint8))


def test_float16_rounds_to_nearest() -> None:
    values = np.linspace(-2, 2, 60, dtype=np.float32).reshape(10, 3, 2)
    stored = CODECS["float16"].encode(LEVEL, values)
    assert list(stored) == ["up"] and stored["up"].dtype == np.float16
    assert np.abs(stored["up"] - values).max() <= 2.0**-10
    assert not has_nonfinite(CODECS["float16"].encode(LEVEL, values * 32752)["up"])
    assert has_nonfinite(CODECS["float16"].encode(LEVEL, values * 40000)["up"])


def test_what_is_stored_is_little_endian_and_contiguous() -> None:
    values = np.zeros((2, 3, 4), ">f4").transpose(0, 2, 1)
    stored = CODECS["float32"].encode(dataclasses.replace(LEVEL, shape=(4, 3)), values)["up"]
    assert stored.flags.c_contiguous and stored.dtype.byteorder in "<="


def test_raw_keeps_values_and_refuses_other_types() -> None:
    level = dataclasses.replace(LEVEL, dtype="int32")
    values = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    assert np.array_equal(CODECS["raw"].encode(level, values)["up"], values)
    with pytest.raises(DataError, match="got int64, allowed int32"):
        CODECS["raw"].encode(level, values.astype(np.int64))
    with pytest.raises(DataError, match="bfloat16"):
        CODECS["raw"].arrays(dataclasses.replace(LEVEL, dtype="bfloat16"))


def test_floats_only_for_float_codecs() -> None:
    with pytest.raises(DataError, match="floating point"):
        CODECS["float16"].encode(LEVEL, np.zeros((1, 3, 2), np.int32))


def test_arrays_of_a_dataset() -> None:
    recipe = Recipe("a", {}, {"codecs": {"up": "float16"}})
    specs = array_specs(recipe, [LEVEL], image_size=(4, 5), images=True, labels=True, masks=True)
    assert [(s.name, s.dtype.name, s.shape, s.row_bytes) for s in specs] == [
        ("image", "uint8", (4, 5, 3), 60),
        ("label", "int64", (), 8),
        ("mask", "uint8", (4, 5), 20),
        ("up", "float16", (3, 2), 12),
    ]
    assert math.isnan(specs[3].fill) and [s.fill for s in specs[:3]] == [0, -1, 0]
    with pytest.raises(DataError, match="names that differ"):
        array_specs(recipe, [LEVEL, LEVEL], image_size=(4, 5), images=True, labels=True, masks=True)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(DataError, match=r"layout.codecs.up: got 'int3', allowed float16"):
        codec_for(Recipe("a", {}, {"codecs": {"up": "int3"}}), LEVEL)


def test_errors_say_who_made_the_value() -> None:
    values = np.ones((4, 3, 2), np.float32)
    values[2, 1, 0] = 7e4
    stored = CODECS["float16"].encode(LEVEL, values)["up"]
    error = explain_nonfinite("up", values=values, encoded=stored, first_row=10, unit=3)
    assert str(error).startswith("level up, unit 3, row 12: got 70000, allowed at most 65504")
    values[2, 1, 0] = np.nan
    error = explain_nonfinite("up", values=values, encoded=values, first_row=10, unit=3)
    assert "got nan" in str(error) and "teacher" in str(error)
