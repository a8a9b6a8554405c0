"""Every codec: what is read lies within the bound it declares, and says how to read it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamshard.errors import DataError
from storage.codecs.base import Codec, LearnedCodec
from storage.codecs.integers import num_groups, pack, unpack
from storage.codecs.lowrank import LowRankCodec
from storage.codecs.table import CODECS, find_codec
from storage.schema import Level
from tests.codec_bounds import bound

LEVEL = Level("up", "feature", "up", 0, 0, "", 4, (3, 2, 5), "float32")
SHAPES = st.sampled_from([(1,), (7,), (2, 3), (3, 2, 5), (4, 1, 1), (5, 4, 4)])
NAMES = [
    *("float16", "float32", "bfloat16", "int8", "int4", "raw", "int8+zstd", "float16+blosc"),
    *("lowrank1-int8", "lowrank1-int4", "dct2", "zstd", "blosc"),
]


def level_of(shape: tuple[int, ...], dtype: str = "float32") -> Level:
    return dataclasses.replace(LEVEL, shape=shape, dtype=dtype)


def ready(name: str, level: Level, values: np.ndarray) -> Codec:
    codec = find_codec(name)
    assert codec is not None and codec.name.removeprefix("raw+") in (name, f"raw+{name}")
    if isinstance(codec, LearnedCodec):
        return codec.fitted(level, codec.fit(level, values))
    return codec


@st.composite
def maps(draw: st.DrawFn) -> tuple[Level, np.ndarray]:
    shape, count = draw(SHAPES), draw(st.integers(1, 4))
    limit = draw(st.sampled_from([2.0**-20, 1.0, 60000.0]))
    elements = st.floats(-limit, limit, width=32)
    return level_of(shape), draw(hnp.arrays("<f4", (count, *shape), elements=elements))


def one_value_among_zeros() -> tuple[Level, np.ndarray]:
    values = np.zeros((2, 3, 2, 5), np.float32)
    values[0, 0, 0, 0] = 139.0
    return LEVEL, values


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(maps())
@example(one_value_among_zeros())  # dct: a coefficient that cancels the centre, found 2026-11-21
def test_what_is_read_lies_within_the_bound(name: str, case: tuple[Level, np.ndarray]) -> None:
    level, values = case
    if name.startswith("lowrank"):
        values = values / 64  # components are larger than values, and scales are float16
    codec = ready(name, level, values)
    stored = codec.encode(level, values)
    specs = codec.arrays(level)
    assert list(stored) == [spec.name for spec in specs] and specs[0].name == level.name
    for spec in specs:
        rows = stored[spec.name]
        assert (rows.dtype, rows.shape) == (spec.dtype, (len(values), *spec.shape))
        assert rows.flags.c_contiguous and rows.dtype.byteorder in "<=|"
        assert not spec.has_nonfinite(rows)
    found, limit = codec.decode(level, stored), bound(codec, level, values)
    assert (found.dtype, found.shape, limit.shape) == (np.float32, values.shape, values.shape)
    error = np.abs(found.astype(np.float64) - values)
    assert (error <= limit).all(), (error - limit).max()


@pytest.mark.parametrize(("name", "share"), [("int8", 1 / 250), ("int4", 1 / 29)])
def test_the_bound_is_a_share_of_the_range(name: str, share: float) -> None:
    values = np.random.default_rng(0).uniform(-3, 3, (50, *LEVEL.shape)).astype(np.float32)
    limit = bound(CODECS[name], LEVEL, values)
    span = np.ptp(values.reshape(50, 3, -1), axis=2).max()
    assert limit.max() <= share * span
    error = np.abs(CODECS[name].decode(LEVEL, CODECS[name].encode(LEVEL, values)) - values)
    assert error.max() >= limit.max() / 2  # and no idle promise


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_side=1, max_side=6), elements=st.integers(0, 15)))
def test_packing_loses_nothing(whole: np.ndarray) -> None:
    packed = pack(whole)
    assert packed.shape == (*whole.shape[:-1], -(-whole.shape[-1] // 2))
    assert np.array_equal(unpack(packed, whole.shape[-1]), whole)


@settings(deadline=None)
@given(hnp.arrays("<f4", 30, elements=st.floats(width=32)))
def test_bfloat16_rounds_as_torch_does(values: np.ndarray) -> None:
    import torch

    level = level_of((30,))
    bits = CODECS["bfloat16"].encode(level, values[None])["up"][0]
    wanted = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    found = CODECS["bfloat16"].decode(level, {"up": bits[None]})[0]
    assert np.array_equal(found, wanted, equal_nan=True)


def test_bits_of_a_bfloat16_teacher_are_kept() -> None:
    level = level_of((2,), "bfloat16")
    bits = np.array([[0x3F80, 0x7F80]], np.uint16)
    stored = CODECS["bfloat16"].encode(level, bits)["up"]
    assert np.array_equal(stored, bits)
    assert CODECS["bfloat16"].arrays(level)[0].has_nonfinite(stored)


@pytest.mark.parametrize("name", ["int8", "int4", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_cannot_be_stored_is_seen_by_the_writer(name: str, bad: float) -> None:
    values = np.ones((2, *LEVEL.shape), np.float32)
    values[1, 2, 1, 1] = bad
    codec = CODECS[name]
    stored = codec.encode(LEVEL, values)
    seen = any(spec.has_nonfinite(stored[spec.name]) for spec in codec.arrays(LEVEL))
    assert seen or (name == "bfloat16" and bad == 3.4e38)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_constant_and_empty_groups_are_exact_enough(name: str) -> None:
    values = np.zeros((1, *LEVEL.shape), np.float32)
    values[0, 1] = 2.5
    codec = CODECS[name]
    found = codec.decode(LEVEL, codec.encode(LEVEL, values))
    assert np.array_equal(found[0, 0], values[0, 0])
    assert np.abs(found - values).max() <= 2.5 * 2e-3


def test_scales_are_per_channel_of_a_map_and_per_vector() -> None:
    assert [num_groups(shape) for shape in ((3, 2, 5), (7,), ())] == [3, 1, 1]


def test_the_basis_is_the_same_every_time_and_orthonormal() -> None:
    values = np.random.default_rng(1).standard_normal((20, *LEVEL.shape)).astype(np.float32)
    codec = find_codec("lowrank2-int8")
    assert isinstance(codec, LowRankCodec)
    basis = codec.fit(LEVEL, values)
    assert np.array_equal(basis, codec.fit(LEVEL, values)) and basis.shape == (3, 3)
    assert np.allclose(basis[1:] @ basis[1:].T, np.eye(2), atol=1e-6)
    assert np.allclose(basis[0], values.mean(axis=(0, 2, 3)), atol=1e-6)


def test_full_rank_leaves_only_quantisation() -> None:
    values = np.random.default_rng(2).standard_normal((9, *LEVEL.shape)).astype(np.float32)
    codec = ready("lowrank3-int8", LEVEL, values)
    found = codec.decode(LEVEL, codec.encode(LEVEL, values))
    assert np.abs(found - values).max() < 0.05


def test_what_does_not_fit_is_refused() -> None:
    values = np.ones((1, *LEVEL.shape), np.float32)
    codec = find_codec("lowrank4-int8")
    assert isinstance(codec, LowRankCodec)
    with pytest.raises(DataError, match="allowed a rank up to the level's 3 channels"):
        codec.arrays(LEVEL)
    codec = find_codec("lowrank2-int4")
    assert isinstance(codec, LowRankCodec)
    with pytest.raises(DataError, match="has no basis yet"):
        codec.encode(LEVEL, values)
    with pytest.raises(DataError, match=r"allowed finite float32 \(3, 3\)"):
        codec.fitted(LEVEL, np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match="to fit codec"):
        codec.fit(LEVEL, values[:0])
    for name in ("int8", "int4", "bfloat16"):
        with pytest.raises(DataError, match="floating point"):
            CODECS[name].encode(LEVEL, values.astype(np.int32))


@pytest.mark.parametrize(
    "name", ["int3", "dct1", "dct", "lowrank0-int8", "lowrank4", "+zstd", "zstd+zstd", "a+b"]
)
def test_other_names_are_unknown(name: str) -> None:
    assert find_codec(name) is None
