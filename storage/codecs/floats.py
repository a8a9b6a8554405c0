"""Codecs that keep one number per value: raw, float16, float32 and bfloat16."""

from __future__ import annotations

import math

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import Arrays, ArraySpec, Codec, check_float
from storage.schema import Level

_BFLOAT16_NAN = 0x7FC0


class FloatCodec(Codec):
    """Store floating-point values at one precision; what does not fit is found by the writer.

    Error: half a unit in the last place: |x| * 2^-11 for float16 (2^-25 below 2^-14) and
    |x| * 2^-24 for float32 (0 for values that are float32 or shorter).
    """

    exact: bool = True

    def __init__(self, dtype: str) -> None:
        self.name, self.dtype = dtype, np.dtype(dtype).newbyteorder("<")

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the one array."""
        return (ArraySpec(level.name, self.dtype, level.shape, math.nan, level.name),)

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Round the values to the stored precision."""
        check_float(level, values, self.name)
        with np.errstate(over="ignore"):
            return {level.name: np.ascontiguousarray(values, dtype=self.dtype)}

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Return the values as float32."""
        return arrays[level.name].astype(np.float32)


class RawCodec(Codec):
    """Store values exactly as the teacher hands them over; the error is 0."""

    name = "raw"
    exact: bool = True

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the one array."""
        if level.dtype == "bfloat16":
            raise DataError(
                f"level {level.name}: got dtype bfloat16 with codec 'raw', which numpy does not "
                "know. Choose codec 'bfloat16', 'float16' or 'float32'."
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

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Return the values as float32."""
        return arrays[level.name].astype(np.float32)


class BFloat16Codec(Codec):
    """Store the upper halves of float32 values, rounded to nearest even, as uint16.

    Error: |x| * 2^-8 (half a unit in the last of 8 bits of precision). A plain Zarr reader gets
    uint16 and the attribute that says how to see it: `(a.astype("u4") << 16).view("f4")`.
    """

    name = "bfloat16"

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the one array."""
        how = {
            "codec": self.name,
            "view": "bfloat16",
            "decode": "(a.astype('uint32') << 16).view('float32')",
        }
        dtype = np.dtype("<u2")
        return (
            ArraySpec(
                level.name, dtype, level.shape, _BFLOAT16_NAN, level.name, how, bfloat16=True
            ),
        )

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Round to nearest even; uint16 values of a bfloat16 teacher are kept as they are."""
        if level.dtype == "bfloat16" and values.dtype == np.uint16:
            return {level.name: np.ascontiguousarray(values, "<u2")}
        check_float(level, values, self.name)
        with np.errstate(over="ignore"):
            bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        halves = rounded.astype("<u2")
        if nan.any():  # rounding could carry a NaN's bits over into a number
            halves[nan] = _BFLOAT16_NAN
        return {level.name: halves}

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Return the values as float32, exactly."""
        return (arrays[level.name].astype(np.uint32) << 16).view(np.float32)
