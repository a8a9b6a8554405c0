"""Codec dct: the textbook's quantisers and bits, a size that never varies, errors that pay off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamshard.errors import DataError
from storage.codecs.base import LearnedCodec
from storage.codecs.dct import DctCodec
from storage.codecs.quantiser import allocate_bits, distortion, gaussian_book
from storage.codecs.table import find_codec
from storage.codecs.transform import dct_matrix, map_shape
from storage.schema import Level
from tests.codec_bounds import bound

LEVEL = Level("up", "feature", "up", 0, 0, "", 4, (12, 6, 8), "float16")


def smooth_maps(count: int, *, seed: int) -> np.ndarray:
    """Make maps whose channels mix weaker and weaker sources and whose neighbours are alike."""
    channels, height, width = LEVEL.shape
    mix = np.random.default_rng(7).standard_normal((channels, channels)) * 0.7 ** np.arange(
        channels
    )
    noise = np.random.default_rng(seed).standard_normal((count, channels, height + 2, width + 2))
    smooth = noise[:, :, :-2] + noise[:, :, 1:-1] + noise[:, :, 2:]
    smooth = smooth[..., :-2] + smooth[..., 1:-1] + smooth[..., 2:]
    return (np.einsum("cs,nshw->nchw", mix, smooth) + 2).astype(np.float16)


def fitted(name: str, level: Level = LEVEL, values: np.ndarray | None = None) -> LearnedCodec:
    codec = find_codec(name)
    assert isinstance(codec, LearnedCodec)
    return codec.fitted(
        level, codec.fit(level, smooth_maps(64, seed=0) if values is None else values)
    )


def relative_error(codec: LearnedCodec, values: np.ndarray) -> float:
    found = codec.decode(LEVEL, codec.encode(LEVEL, values))
    wanted = values.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("bits", "values", "error"),
    [  # Max, "Quantizing for minimum distortion", table 1
        (1, [0.7980], 0.3634),
        (2, [0.4528, 1.510], 0.1175),
        (3, [0.2451, 0.7560, 1.344, 2.152], 0.03454),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
    ],
)
def test_quantisers_are_those_of_the_paper(bits: int, values: list[float], error: float) -> None:
    book = gaussian_book(bits)
    assert np.allclose(book[len(book) // 2 :], values, atol=1e-3)
    assert np.allclose(book, -book[::-1])
    assert distortion(book) == pytest.approx(error, rel=2e-3)


@given(
    hnp.arrays(float, st.integers(1, 6), elements=st.sampled_from([0.0, 1e-6, 0.2, 1.0, 9.0])),
    st.integers(0, 12),
)
def test_no_other_allocation_of_the_bits_is_better(variance: np.ndarray, budget: int) -> None:
    errors = [1.0, 0.36, 0.12, 0.03]

    def best(place: int, left: int) -> float:
        if place == len(variance):
            return 0.0
        options = range(min(left, len(errors) - 1) + 1)
        return min(variance[place] * errors[n] + best(place + 1, left - n) for n in options)

    bits = allocate_bits(variance, budget, errors)
    assert bits.sum() <= budget and bits.max() < len(errors) and not bits[variance == 0].any()
    total = sum(v * errors[n] for v, n in zip(variance, bits, strict=True))
    assert total == pytest.approx(best(0, budget))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_the_transform_is_orthonormal(size: int) -> None:
    assert np.allclose(dct_matrix(size) @ dct_matrix(size).T, np.eye(size), atol=1e-6)


@pytest.mark.parametrize(("name", "worst"), [("dct2", 0.01), ("dct4", 0.04), ("dct16", 0.3)])
def test_the_size_is_as_promised_and_the_error_small(name: str, worst: float) -> None:
    codec, values = fitted(name), smooth_maps(50, seed=1)
    fold = int(name.removeprefix("dct"))
    stored = codec.encode(LEVEL, values)["up"]
    assert stored.shape == (50, 2 * 12 * 6 * 8 // fold) and stored.dtype == np.uint8
    assert relative_error(codec, values) < worst


def test_fewer_bytes_and_less_whitened_error_than_low_rank() -> None:
    values = smooth_maps(50, seed=1)

    def white(maps: np.ndarray) -> np.ndarray:
        plain = maps.astype(np.float64)
        return (plain - plain.mean(axis=1, keepdims=True)) / plain.std(axis=1, keepdims=True)

    found = {}
    for name in ("lowrank4-int4", "dct11"):
        codec = fitted(name)
        stored = codec.encode(LEVEL, values)
        size = sum(rows.nbytes for rows in stored.values())
        error = np.square(white(codec.decode(LEVEL, stored)) - white(values)).mean()
        found[name] = (size, error)
    assert found["dct11"][0] < found["lowrank4-int4"][0]
    assert found["dct11"][1] < 0.8 * found["lowrank4-int4"][1]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(5,), (3, 4), (2, 3, 3)]),
    st.integers(2, 6),
    hnp.arrays("<f4", (3, 18), elements=st.floats(-100, 100, width=32)),
)
def test_unseen_values_stay_within_the_bound(
    shape: tuple[int, ...], fold: int, drawn: np.ndarray
) -> None:
    level = dataclasses.replace(LEVEL, shape=shape)
    seen = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    codec = fitted(f"dct{fold}", level, seen)
    values = drawn[:, : int(np.prod(shape))].reshape(3, *shape)
    error = np.abs(codec.decode(level, codec.encode(level, values)) - values.astype(np.float64))
    assert (error <= bound(codec, level, values)).all()


def test_the_same_samples_give_the_same_basis_and_the_same_bytes() -> None:
    first, second = fitted("dct8"), fitted("dct8")
    assert first.basis is not None and second.basis is not None
    assert np.array_equal(first.basis, second.basis) and first.basis.dtype == np.float32
    values = smooth_maps(9, seed=3)
    whole = first.encode(LEVEL, values)["up"]
    assert np.array_equal(whole, second.encode(LEVEL, values)["up"])


def test_a_map_that_never_changes_takes_no_bits() -> None:
    values = np.full((8, *LEVEL.shape), 3, np.float16)
    codec = fitted("dct16", values=values)
    assert isinstance(codec, DctCodec) and codec.transform is not None
    assert not codec.transform.bits.any()
    assert relative_error(codec, values) < 1e-3


def test_a_basis_that_cannot_be_the_levels_is_refused() -> None:
    codec = find_codec("dct16")
    assert isinstance(codec, DctCodec)
    good = codec.fit(LEVEL, smooth_maps(16, seed=0))
    bits_at = 2 * 14 * 48 + 144  # after centre, rotation and scale
    for place, value, message in (
        (0, np.nan, "not finite"),
        (14 * 48 + 144, -1.0, "negative scale"),
        (bits_at, 9.0, "0 to 9 bits"),
        (bits_at, 0.5, "bits"),
    ):
        bad = good.copy()
        bad[place] = value
        with pytest.raises(DataError, match=message):
            codec.fitted(LEVEL, bad)
    more = good.copy()
    more[bits_at : bits_at + 14 * 48] = 8
    with pytest.raises(DataError, match=r"5376 bits in place of 576"):
        codec.fitted(LEVEL, more)
    with pytest.raises(DataError, match="allowed finite"):
        codec.fitted(LEVEL, good[:-1])


def test_what_cannot_be_stored_so_is_refused() -> None:
    codec, vector = find_codec("dct64"), dataclasses.replace(LEVEL, shape=(16,))
    assert isinstance(codec, DctCodec)
    with pytest.raises(DataError, match="allowed a number up to 32"):
        codec.arrays(vector)
    with pytest.raises(DataError, match=r"allowed \(C,\), \(C, T\) or \(C, H, W\)"):
        map_shape(dataclasses.replace(LEVEL, shape=(2, 2, 2, 2)))
    with pytest.raises(DataError, match="no basis yet"):
        codec.encode(LEVEL, smooth_maps(1, seed=0))
    with pytest.raises(DataError, match="all finite"):
        codec.fit(LEVEL, np.full((2, *LEVEL.shape), np.nan, np.float32))
