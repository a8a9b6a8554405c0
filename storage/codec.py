"""How a level's values become stored arrays: one table entry per codec.

A codec names the arrays it stores for a level and encodes a batch of values into them. One whose
reader needs more than one array (scales beside quantised values) simply names more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dreamshard.errors import DataError
from storage.schema import Level, Recipe

IMAGE, LABEL, MASK = "image", "label", "mask"


@dataclass(frozen=True)
class ArraySpec:
    """Describe one stored array over the whole dataset.

    `shape` is per sample; `fill` stands in rows that are missing or invalid; `level` is the level
    the array belongs to, "" for images, labels and masks.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fill: float | int
    level: str = ""
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return self.dtype.itemsize * math.prod(self.shape)


class Codec(Protocol):
    """What a codec must be able to do."""

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the arrays a level is stored as."""
        ...

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Encode values (N, *level.shape); each array C-contiguous, little-endian (N, *shape)."""
        ...


class FloatCodec:
    """Store floating-point values at one precision; what does not fit is found by the writer."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the one array."""
        return (ArraySpec(level.name, self.dtype, level.shape, math.nan, level.name),)

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Round the values to the stored precision."""
        if values.dtype.kind != "f":
            raise DataError(
                f"level {level.name}: got {values.dtype} values, allowed floating point for codec "
                f"{self.dtype.name!r}."
            )
        with np.errstate(over="ignore"):
            return {level.name: np.ascontiguousarray(values, dtype=self.dtype)}


class RawCodec:
    """Store values exactly as the teacher hands them over."""

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the one array."""
        if level.dtype == "bfloat16":
            raise DataError(
                f"level {level.name}: got dtype bfloat16 with codec 'raw', which numpy does not "
                "know. Choose codec 'float16' or 'float32'."
            )
        dtype = np.dtype(level.dtype).newbyteorder("<")
        fill = math.nan if dtype.kind == "f" else 0
        return (ArraySpec(level.name, dtype, level.shape, fill, level.name),)

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Check the dtype and lay the values out in C order."""
        dtype = np.dtype(level.dtype).newbyteorder("<")
        if values.dtype != dtype:
            raise DataError(f"level {level.name}: got {values.dtype}, allowed {dtype} (codec raw).")
        return {level.name: np.ascontiguousarray(values, dtype=dtype)}


CODECS: dict[str, Codec] = {
    "float16": FloatCodec("float16"),
    "float32": FloatCodec("float32"),
    "raw": RawCodec(),
}


def codec_for(recipe: Recipe, level: Level) -> Codec:
    """Return the codec a recipe's layout gives a level.

    Raises:
        DataError: if this version does not know it.
    """
    name = recipe.codec_of(level)
    if name not in CODECS:
        raise DataError(
            f"layout.codecs.{level.name}: got {name!r:.40}, allowed {', '.join(sorted(CODECS))}."
        )
    return CODECS[name]


def array_specs(
    recipe: Recipe,
    levels: Sequence[Level],
    *,
    image_size: tuple[int, int],
    images: bool,
    labels: bool,
    masks: bool,
) -> tuple[ArraySpec, ...]:
    """List all arrays a dataset stores, in the order they are written."""
    specs: list[ArraySpec] = []
    if images:
        specs.append(ArraySpec(IMAGE, np.dtype(np.uint8), (*image_size, 3), 0))
    if labels:
        specs.append(ArraySpec(LABEL, np.dtype("<i8"), (), -1))
    if masks:
        specs.append(ArraySpec(MASK, np.dtype(np.uint8), image_size, 0))
    for level in levels:
        specs.extend(codec_for(recipe, level).arrays(level))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise DataError(f"levels: got {names}, allowed names that differ.")
    return tuple(specs)


def has_nonfinite(values: np.ndarray) -> bool:
    """Say whether an array holds NaN or an infinity; reads it about twice as fast as isfinite.

    Seen as integers, all bit patterns from +inf on (infinity, NaN) are the largest signed ones and
    those from -inf on the largest unsigned ones, so two plain maxima answer the question.
    """
    if values.dtype.kind != "f" or values.size == 0:
        return False
    bits = values.dtype.itemsize * 8
    infinity = {16: 0x7C00, 32: 0x7F800000, 64: 0x7FF0000000000000}[bits]
    signed = values.view(np.dtype(f"<i{bits // 8}"))
    if int(signed.max()) >= infinity:
        return True
    return int(signed.view(np.dtype(f"<u{bits // 8}")).max()) >= infinity | 1 << (bits - 1)


def explain_nonfinite(
    level: str, *, values: np.ndarray, encoded: np.ndarray, first_row: int, unit: int
) -> DataError:
    """Say which value of which row is not finite, and whether encoding made it so."""
    rows = len(encoded)
    bad = ~np.isfinite(encoded.reshape(rows, -1))
    row = int(np.argmax(bad.any(axis=1)))
    column = int(np.argmax(bad[row]))
    value = values.reshape(rows, -1)[row, column]
    where = f"level {level}, unit {unit}, row {first_row + row}"
    if np.isfinite(value):
        return DataError(
            f"{where}: got {float(value):g}, allowed at most "
            f"{float(np.finfo(encoded.dtype).max):g} in {encoded.dtype.name}. Give the level codec "
            "'float32'."
        )
    return DataError(
        f"{where}: got {float(value)}, allowed finite values. The teacher made it: try another "
        "compute dtype, or look at the input image."
    )
