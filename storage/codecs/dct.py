"""Learned codecs `dct<F>`: 1/F of float16's bytes, spent where a level's variance is.

Bits go to the coefficients of `storage.codecs.transform` by reverse water-filling, each coefficient
quantised by the Lloyd-Max quantiser of a Gaussian. All that decode needs is fitted once and kept as
one float32 vector, `codecs/<level>.npy`. Every sample takes the same number of bytes, so that rows
are found by arithmetic, and decoding is a table look-up and three matrix products on the device
that trains.
"""

from __future__ import annotations

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import Arrays, ArraySpec, LearnedCodec, check_float
from storage.codecs.quantiser import BOOK_SIZE, MAX_BITS, allocate_bits, distortion, gaussian_book
from storage.codecs.transform import (
    Transform,
    analyse,
    fit_rotation,
    fit_variance,
    map_shape,
    synthesise,
    unpack_codes,
)
from storage.schema import Level

_SIDE_WEIGHT = 0.25  # of a position's mean and scale against its C values, which whitening keeps
_TINY = 1e-12


class DctCodec(LearnedCodec):
    """Store a map in 1/fold of the bytes that float16 takes, exactly, whatever the sample.

    A value's error depends on what the fit saw; values far outside of that are clipped. Array:
    `<level>` uint8 (bytes of a sample,), bit planes without gaps, the lowest bits of all
    coefficients first, the first bit in a byte's lowest place.

    Args:
        fold: how many times fewer bytes than float16, 2 or more.
        transform: what was fitted; None before the fit.
    """

    hides_nonfinite: bool = True

    def __init__(self, fold: int, *, transform: Transform | None = None) -> None:
        self.name, self.fold, self.transform = f"dct{fold}", fold, transform
        self.basis = None if transform is None else transform.flat()

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the bit planes' array."""
        how = {
            "codec": self.name,
            "basis": f"codecs/{level.name}.npy",
            "decode": "see storage/codecs/transform.py; the basis holds centre, rotation, scale, "
            "bits and quantisers",
        }
        size = (self._budget(level) // 8,)
        return (ArraySpec(level.name, np.dtype(np.uint8), size, 0, level.name, how),)

    def basis_shape(self, level: Level) -> tuple[int, ...]:
        """Return the shape of the vector that a fit gives."""
        channels, height, width = map_shape(level)
        return (3 * (channels + 2) * height * width + channels * channels + BOOK_SIZE,)

    def fit(self, level: Level, values: np.ndarray) -> np.ndarray:
        """Find means, rotation, variances and the bits of every coefficient.

        Args:
            level: whose values they are.
            values: (N, *level.shape), finite; some hundred samples.

        Returns:
            `Transform.flat`, float32.
        """
        check_float(level, values, self.name)
        budget = self._budget(level)
        if not len(values) or not np.isfinite(values).all():
            raise DataError(
                f"level {level.name}: got {len(values)} samples to fit codec {self.name} on, "
                "allowed one or more, all finite."
            )
        centre, rotation = fit_rotation(level, values)
        variance = fit_variance(level, values, centre, rotation)
        weights = np.ones_like(variance)
        channels, spread = len(rotation), np.exp(2 * centre[-1]).mean()
        weights[-2:] = _SIDE_WEIGHT * channels * np.array([[1 / max(spread, _TINY)], [1.0]])
        books = [gaussian_book(bits) for bits in range(1, MAX_BITS + 1)]
        bits = allocate_bits(variance * weights, budget, [1.0, *map(distortion, books)])
        scale = np.sqrt(variance)
        return Transform(centre, rotation, scale, bits, np.concatenate(books)).flat()

    def fitted(self, level: Level, basis: np.ndarray) -> DctCodec:
        """Return the codec with a basis, checked.

        Raises:
            DataError: if the basis does not fit the level.
        """
        channels, height, width = map_shape(level)
        problem = f"{basis.dtype} {basis.shape}"
        if basis.shape == self.basis_shape(level) and basis.dtype == np.float32:
            transform = Transform.of(basis, channels, height * width)
            problem = self._problem(level, basis, transform)
            if not problem:
                return DctCodec(self.fold, transform=transform)
        raise DataError(
            f"level {level.name}: basis of codec {self.name}: got {problem}, allowed finite "
            f"float32 {self.basis_shape(level)} as a fit makes it."
        )

    def _problem(self, level: Level, basis: np.ndarray, transform: Transform) -> str:
        if not np.isfinite(basis).all() or (transform.scale < 0).any():
            return "values that are not finite, or a negative scale"
        raw = np.split(basis, np.cumsum([transform.centre.size, transform.rotation.size]))[2]
        raw = raw[transform.scale.size : 2 * transform.scale.size]
        if raw.min() < 0 or raw.max() > MAX_BITS or (raw % 1).any():
            return f"{raw.min():g} to {raw.max():g} bits"
        total, budget = int(transform.bits.sum()), self._budget(level)
        return "" if total <= budget else f"{total} bits in place of {budget}"

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Transform, quantise, and store the codes bit plane by bit plane."""
        check_float(level, values, self.name)
        codes = self._codes(self._coefficients(level, values))
        planes = [
            codes[:, :count] >> plane & 1 for plane, count in enumerate(self._fit_of(level).counts)
        ]
        size = self._budget(level) // 8
        packed = np.zeros((len(values), size), np.uint8)
        if planes:
            some = np.packbits(np.concatenate(planes, axis=1), axis=1, bitorder="little")
            packed[:, : some.shape[1]] = some
        return {level.name: packed}

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Look the codes up and undo the transform."""
        fit, codes = self._fit_of(level), unpack_codes(arrays[level.name], self._fit_of(level))
        quantised = fit.books[fit.first_entry + codes] * fit.step
        normal, mean, log = self._synthesise(level, quantised)
        return (normal * np.exp(log) + mean).reshape(len(codes), *level.shape)

    def _coefficients(self, level: Level, values: np.ndarray) -> np.ndarray:
        """Return all coefficients, float32 (N, K * P)."""
        fit = self._fit_of(level)
        _, height, width = map_shape(level)
        return analyse(level, values, fit.centre, fit.rotation, (height, width))

    def _codes(self, coefficients: np.ndarray) -> np.ndarray:
        """Quantise the coefficients that have bits, in their order; uint8 (N, coefficients)."""
        fit = self.transform
        assert fit is not None, "asked for by _fit_of before"
        codes = np.empty((len(coefficients), len(fit.order)), np.uint8)
        edges = [*fit.counts, 0]
        for bits in range(1, len(edges)):
            some = slice(edges[bits], edges[bits - 1])  # coefficients of exactly so many bits
            book = fit.books[(1 << bits) - 2 : (2 << bits) - 2]
            scaled = coefficients[:, fit.order[some]] / np.maximum(fit.step[some], _TINY)
            codes[:, some] = np.searchsorted((book[1:] + book[:-1]) / 2, scaled)
        return codes

    def _synthesise(
        self, level: Level, quantised: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return normalised values (N, C, P), means and logs (N, 1, P) of ordered coefficients."""
        fit = self._fit_of(level)
        _, height, width = map_shape(level)
        whole = np.zeros((len(quantised), fit.centre.size), np.float32)
        whole[:, fit.order] = quantised
        return synthesise(fit, whole, (height, width), channels=fit.used)

    def _fit_of(self, level: Level) -> Transform:
        if self.transform is None:
            raise self.not_fitted(level)
        return self.transform

    def _budget(self, level: Level) -> int:
        """Return the bits of a sample, whole bytes."""
        channels, height, width = map_shape(level)
        size = 2 * channels * height * width // self.fold
        if size < 1:
            raise DataError(
                f"layout.codecs.{level.name}: got {self.name}, allowed a number up to "
                f"{2 * channels * height * width}, which leaves one byte a sample."
            )
        return 8 * size
