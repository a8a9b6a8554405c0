"""What a codec is: the arrays it stores for a level, and the way there and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dreamshard.errors import DataError
from storage.schema import Level

Arrays = Mapping[str, np.ndarray]
"""Stored arrays (N, *shape) by their full names: `<level>`, `<level>.scale`, ..."""


@dataclass(frozen=True)
class ArraySpec:
    """Describe one stored array over the whole dataset.

    `shape` is per sample; `fill` stands in rows that are missing or invalid; `level` is the level
    the array belongs to, "" for images, labels and masks; `compression` names how whole chunks are
    compressed, "" for raw bytes that can be mapped; `bfloat16` says that uint16 values are the
    upper halves of float32 ones.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fill: float | int
    level: str = ""
    attributes: Mapping[str, object] = field(default_factory=dict)
    compression: str = ""
    bfloat16: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample before compression."""
        return self.dtype.itemsize * math.prod(self.shape)

    def has_nonfinite(self, values: np.ndarray) -> bool:
        """Say whether some of this array's values are NaN or infinite."""
        return has_nonfinite(values, bfloat16=self.bfloat16)


class Codec(ABC):
    """Store a level's values as one or more arrays, with a declared error bound.

    Attributes:
        name: as recipes write it.
        learned: whether it must be fitted to some of the level's values before it can be used.
        exact: whether its one array holds the values themselves, to be used as they are.
        hides_nonfinite: whether its arrays look sound even where a value is NaN or infinite, so
            that values have to be looked at before they are encoded.
    """

    name: str
    learned: bool = False
    exact: bool = False
    hides_nonfinite: bool = False

    @abstractmethod
    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the arrays a level is stored as, the one of the level's own name first."""

    @abstractmethod
    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Encode values (N, *level.shape); each array C-contiguous, little-endian (N, *shape)."""

    @abstractmethod
    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Return the values, float32 (N, *level.shape), of stored arrays by their full names."""


class LearnedCodec(Codec):
    """Be fitted to some of a level's values once, before anything is encoded.

    Attributes:
        basis: float32, what the fit found and decode needs; None before the fit.
    """

    learned: bool = True
    basis: np.ndarray | None = None

    def not_fitted(self, level: Level) -> DataError:
        """Return the error that says what a codec without its basis needs."""
        return DataError(
            f"level {level.name}: codec {self.name} has no basis yet, allowed after a fit. Run "
            "the command that made the dataset again: it fits the basis first."
        )

    @abstractmethod
    def basis_shape(self, level: Level) -> tuple[int, ...]:
        """Return the shape of a level's basis."""

    @abstractmethod
    def fit(self, level: Level, values: np.ndarray) -> np.ndarray:
        """Return the basis for values (N, *level.shape); the same values give the same one."""

    @abstractmethod
    def fitted(self, level: Level, basis: np.ndarray) -> LearnedCodec:
        """Return the codec with a basis; DataError if that cannot be the level's."""


def part_name(level: Level, part: str) -> str:
    """Return the name of a further array of a level, such as `up.1.t100.scale`."""
    return f"{level.name}.{part}"


def check_float(level: Level, values: np.ndarray, codec: str) -> None:
    """Refuse values that have no fraction.

    Raises:
        DataError: if they are not floating point.
    """
    if values.dtype.kind != "f":
        raise DataError(
            f"level {level.name}: got {values.dtype} values, allowed floating point for codec "
            f"{codec!r}."
        )


def has_nonfinite(values: np.ndarray, *, bfloat16: bool = False) -> bool:
    """Say whether an array holds NaN or an infinity; reads it about twice as fast as isfinite.

    Seen as integers, all bit patterns from +inf on (infinity, NaN) are the largest signed ones and
    those from -inf on the largest unsigned ones, so two plain maxima answer the question.

    Args:
        values: any array; integers are finite.
        bfloat16: uint16 values are bfloat16 bits.
    """
    if values.size == 0 or not (values.dtype.kind == "f" or bfloat16):
        return False
    bits = values.dtype.itemsize * 8
    infinity = {16: 0x7C00, 32: 0x7F800000, 64: 0x7FF0000000000000}[bits]
    if bfloat16:
        infinity = 0x7F80
    signed = values.view(np.dtype(f"<i{bits // 8}"))
    if int(signed.max()) >= infinity:
        return True
    return int(signed.view(np.dtype(f"<u{bits // 8}")).max()) >= infinity | 1 << (bits - 1)


def explain_nonfinite(
    level: str, *, values: np.ndarray, encoded: np.ndarray, first_row: int, unit: int
) -> DataError:
    """Say which value of which row is not finite, and whether encoding made it so."""
    rows = len(values)
    flat = values.reshape(rows, -1)
    bad = ~np.isfinite(flat)
    limit = "the codec's range"
    if not bad.any() and encoded.dtype.kind == "f":
        if encoded.shape == values.shape:
            bad = ~np.isfinite(encoded.reshape(rows, -1))
            limit = f"{float(np.finfo(encoded.dtype).max):g} in {encoded.dtype.name}"
        else:  # a scale overflowed: the largest value of that row did it
            row = int(np.argmax((~np.isfinite(encoded.reshape(rows, -1))).any(axis=1)))
            bad[row, np.argmax(np.abs(flat[row]))] = True
    elif not bad.any():  # bfloat16 bits
        bad = np.abs(flat) == np.abs(flat).max()
    row = int(np.argmax(bad.any(axis=1)))
    value = flat[row, int(np.argmax(bad[row]))]
    where = f"level {level}, unit {unit}, row {first_row + row}"
    if np.isfinite(value):
        return DataError(
            f"{where}: got {float(value):g}, allowed at most {limit}. Give the level codec "
            "'float32'."
        )
    return DataError(
        f"{where}: got {float(value)}, allowed finite values. The teacher made it: try another "
        "compute dtype, or look at the input image."
    )
