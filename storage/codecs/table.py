"""Codecs by name: `float16`, `int8`, `lowrank16-int4`, `dct16`, and any of them with `+zstd`."""

from __future__ import annotations

import re

from storage.codecs.base import Codec
from storage.codecs.dct import DctCodec
from storage.codecs.floats import BFloat16Codec, FloatCodec, RawCodec
from storage.codecs.integers import Int4Codec, Int8Codec
from storage.codecs.lossless import COMPRESSIONS, CompressedCodec
from storage.codecs.lowrank import LowRankCodec

CODECS: dict[str, Codec] = {
    "float16": FloatCodec("float16"),
    "float32": FloatCodec("float32"),
    "bfloat16": BFloat16Codec(),
    "int8": Int8Codec(),
    "int4": Int4Codec(),
    "raw": RawCodec(),
}
"""Codecs with a fixed name; `find_codec` knows the others too."""

ALLOWED = (
    f"{', '.join(CODECS)}, lowrank<R>-int8, lowrank<R>-int4, dct<F> with F = 2 or more, and any "
    f"of them followed by {' or '.join('+' + name for name in COMPRESSIONS)}"
)
_DCT = re.compile(r"dct([2-9]|[1-9][0-9]{1,3})")
_LOW_RANK = re.compile(r"lowrank([1-9][0-9]{0,4})-(int8|int4)")


def find_codec(name: str) -> Codec | None:
    """Return the codec of a name, None if there is none."""
    if name in COMPRESSIONS:
        return CompressedCodec(CODECS["raw"], name)
    base, mark, compression = name.partition("+")
    if mark:
        inner = find_codec(base) if "+" not in compression else None
        known = inner is not None and compression in COMPRESSIONS and base not in COMPRESSIONS
        return CompressedCodec(inner, compression) if known and inner is not None else None
    matched = _LOW_RANK.fullmatch(name)
    if matched:
        inner_codec = Int8Codec() if matched[2] == "int8" else Int4Codec()
        return LowRankCodec(int(matched[1]), inner_codec)
    if matched := _DCT.fullmatch(name):
        return DctCodec(int(matched[1]))
    return CODECS.get(name)
