"""Learned codecs: a projection to few principal components over channels, quantised.

The basis is fitted once, on a fixed set of samples, kept as `codecs/<level>.npy` beside the data
before the first unit is written, and named by its digest in every commit.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import Arrays, ArraySpec, LearnedCodec, check_float
from storage.codecs.integers import Int4Codec, Int8Codec
from storage.schema import Level

MAX_FIT_VECTORS = 200_000  # beyond this more positions change the basis no further


class LowRankCodec(LearnedCodec):
    """Store the first `rank` principal components over channels of every position, quantised.

    x ~ mean + sum_r c_r * basis_r, the c_r stored by int8 or int4 with a scale per component and
    sample. Error of a value: what the projection leaves out of it (known from the value), and half
    a quantisation step per component times that component's weight in the channel.

    Args:
        rank: components kept, at most the level's channels.
        inner: how coefficients are stored.
        basis: float32 (1 + rank, C): the mean, then orthonormal rows; None before the fit.
    """

    def __init__(
        self, rank: int, inner: Int8Codec | Int4Codec, *, basis: np.ndarray | None = None
    ) -> None:
        self.name = f"lowrank{rank}-{inner.name}"
        self.rank, self.inner, self.basis = rank, inner, basis

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the coefficients' arrays."""
        how = {
            "codec": self.name,
            "basis": f"codecs/{level.name}.npy",
            "coefficients": self.inner.name,
            "decode": "coefficients as decoded, times basis[1:] over the first axis, plus basis[0]",
        }
        first, *rest = self.inner.arrays(self._inner_level(level))
        attributes = {**first.attributes, **how}
        return (replace(first, attributes=attributes), *rest)

    def basis_shape(self, level: Level) -> tuple[int, ...]:
        """Return (1 + rank, C)."""
        return (1 + self.rank, *level.shape[:1])

    def fit(self, level: Level, values: np.ndarray) -> np.ndarray:
        """Find mean and principal components of some samples' values.

        Args:
            level: whose values they are.
            values: (N, *level.shape), finite.

        Returns:
            float32 (1 + rank, C), the mean first; signs fixed, so that the same values give the
            same basis.
        """
        self._inner_level(level)
        check_float(level, values, self.name)
        vectors = _vectors(level, values).transpose(0, 2, 1).reshape(-1, level.shape[0])
        step = max(1, -(-len(vectors) // MAX_FIT_VECTORS))
        vectors = vectors[::step].astype(np.float64)
        if not len(vectors) or not np.isfinite(vectors).all():
            raise DataError(
                f"level {level.name}: got {len(vectors)} vectors to fit codec {self.name} on, "
                "allowed one or more, all finite."
            )
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        _, directions = np.linalg.eigh(centred.T @ centred)
        basis = directions[:, ::-1].T[: self.rank]
        strongest = np.abs(basis).argmax(axis=1)
        basis = basis * np.sign(basis[np.arange(len(basis)), strongest])[:, None]
        return np.concatenate([mean[None], basis]).astype("<f4")

    def fitted(self, level: Level, basis: np.ndarray) -> LowRankCodec:
        """Return the codec with a basis, checked.

        Raises:
            DataError: if the basis does not fit the level.
        """
        wanted = self.basis_shape(level)
        if basis.shape != wanted or basis.dtype != np.float32 or not np.isfinite(basis).all():
            raise DataError(
                f"level {level.name}: basis of codec {self.name}: got {basis.dtype} "
                f"{basis.shape}, allowed finite float32 {wanted}."
            )
        return LowRankCodec(self.rank, self.inner, basis=basis)

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Project, and quantise the coefficients."""
        check_float(level, values, self.name)
        inner = self._inner_level(level)
        return self.inner.encode(inner, self._project(level, values).reshape(-1, *inner.shape))

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Combine the components again."""
        coefficients = self.inner.decode(self._inner_level(level), arrays)
        return self._combine(level, coefficients)

    def _project(self, level: Level, values: np.ndarray) -> np.ndarray:
        """Return coefficients, float32 (N, rank, positions)."""
        basis = self._basis(level)
        centred = _vectors(level, values) - basis[0][:, None]
        return np.matmul(basis[1:], centred)

    def _combine(self, level: Level, coefficients: np.ndarray) -> np.ndarray:
        basis, count = self._basis(level), len(coefficients)
        flat = coefficients.reshape(count, self.rank, -1)
        values = np.matmul(basis[1:].T, flat) + basis[0][:, None]
        return values.reshape(count, *level.shape)

    def _basis(self, level: Level) -> np.ndarray:
        if self.basis is None:
            raise self.not_fitted(level)
        return self.basis

    def _inner_level(self, level: Level) -> Level:
        if not level.shape or level.shape[0] < self.rank:
            channels = level.shape[0] if level.shape else 0
            raise DataError(
                f"layout.codecs.{level.name}: got {self.name}, allowed a rank up to the level's "
                f"{channels} channels."
            )
        return replace(level, shape=(self.rank, *level.shape[1:]))


def _vectors(level: Level, values: np.ndarray) -> np.ndarray:
    """See values as float32 (N, C, positions)."""
    positions = math.prod(level.shape[1:])
    flat = values.reshape(len(values), level.shape[0], positions)
    return flat.astype(np.float32, copy=False)
