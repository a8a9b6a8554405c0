"""Fitted bases of learned codecs: put once, before the first unit, and named in every commit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xxhash

from dreamshard.errors import DataError
from storage.codecs.base import Codec, LearnedCodec
from storage.codecs.lossless import CompressedCodec
from storage.codecs.npy import read_npy, write_npy
from storage.fs.local import Files
from storage.schema import Level

FOLDER = "codecs"
FIT_SAMPLES = 512
_MAX_BYTES = 1 << 30


def basis_key(level: Level) -> str:
    """Return where a level's basis lies: a plain npy file."""
    return f"{FOLDER}/{level.name}.npy"


def learned_part(codec: Codec) -> LearnedCodec | None:
    """Return the part of a codec that has to be fitted, None if it has none."""
    inner = codec.inner if isinstance(codec, CompressedCodec) else codec
    return inner if isinstance(inner, LearnedCodec) else None


def with_basis(files: Files, level: Level, codec: Codec) -> Codec:
    """Return a codec ready for use: a learned one with its basis, where it was fitted.

    Raises:
        DataError: if the basis is damaged or of another level.
    """
    learned = learned_part(codec)
    if learned is None:
        return codec
    try:
        data = files.read(basis_key(level), limit=_MAX_BYTES)
    except FileNotFoundError:
        return codec
    try:
        basis = read_npy(data, np.dtype("<f4"), learned.basis_shape(level))
        fitted = learned.fitted(level, basis)
    except (ValueError, DataError) as error:
        raise DataError(
            f"{files.path(basis_key(level))}: got a damaged basis ({error!s:.200}). Without it the "
            "level cannot be decoded: make the dataset again under another name."
        ) from None
    if isinstance(codec, CompressedCodec):
        return CompressedCodec(fitted, codec.compression)
    return fitted


def put_basis(files: Files, level: Level, codec: Codec, values: np.ndarray, *, fsync: bool) -> None:
    """Fit a learned codec to values (N, *level.shape) and keep the basis, if there is none yet."""
    learned = learned_part(codec)
    if learned is not None:
        data = write_npy(learned.fit(level, values))
        files.write(basis_key(level), data, if_absent=True, fsync=fsync)


def basis_digests(codecs: Mapping[str, Codec]) -> dict[str, str]:
    """Return the XXH3-128 of each fitted basis's values, 32 hex digits, by level.

    Raises:
        DataError: if one is not fitted yet.
    """
    digests: dict[str, str] = {}
    for name, codec in codecs.items():
        learned = learned_part(codec)
        if learned is None:
            continue
        if learned.basis is None:
            raise DataError(
                f"level {name}: got no basis for codec {learned.name}, allowed one before the "
                f"first unit. Call Dataset.fit with {FIT_SAMPLES} samples or so."
            )
        digests[name] = xxhash.xxh3_128_hexdigest(learned.basis.tobytes())
    return digests
