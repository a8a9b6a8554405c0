"""Files that carry a digest of their own bytes, so that no changed bit of them passes unnoticed.

The text of a JSON object ends with a member `"xxh3_128": "<32 hex digits>"`: the XXH3-128 of the
whole file with zeros in the digits' place. A Parquet file has the same text among its key-value
pairs. Each file stands for itself: writers need no lock, and readers that do not know of it pass
over one more member. Files of earlier versions have none: they are unsealed, and not damaged.
It tells accidents, not enemies: whoever can write the file can write its digest.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import xxhash

from dreamshard.foreign.guard import UnreadableError
from dreamshard.foreign.text import parse_json

SEAL = "xxh3_128"
ZEROS = "0" * 32
_BLOCK = 4 << 20


class _Form(NamedTuple):
    """How a digest stands in a kind of file: after a mark, within some bytes of the end."""

    mark: bytes
    pattern: re.Pattern[bytes]
    tail: int
    alike: int
    """Bytes of the mark: where as many are in place, the file was sealed before it was damaged."""


_MARK, _TABLE_MARK = f'"{SEAL}": "'.encode(), f"{SEAL}: ".encode()
_JSON = _Form(_MARK, re.compile(_MARK + rb'([0-9a-f]{32})"[\s}]*\Z'), 80, 11)
_PARQUET = _Form(_TABLE_MARK, re.compile(_TABLE_MARK + rb"([0-9a-f]{32})"), 1024, 8)
PARQUET_PAIR = {"dreamshard": f"{SEAL}: {ZEROS}"}
"""The key-value pair of a Parquet file whose digits `seal_end` fills in."""


def sealed_json(
    value: Mapping[str, Any],
    *,
    indent: int | None = None,
    inside: str = "",
    infinite: bool = False,
) -> bytes:
    """Return the text of a JSON object with its digest as the last member.

    Args:
        value: JSON's values.
        indent: as json.dumps takes it.
        inside: name of the member, an object, to put the digest into where readers of an earlier
            version allow no other members; it becomes the last.
        infinite: whether Infinity and NaN are values.

    Raises: ValueError, TypeError for values that JSON cannot hold.
    """
    if inside:
        inner = {**value[inside], SEAL: ZEROS}
        whole = {**{k: v for k, v in value.items() if k != inside}, inside: inner}
    else:
        whole = {**value, SEAL: ZEROS}
    text = json.dumps(whole, indent=indent, allow_nan=infinite).encode()
    return _filled(text, _JSON, xxhash.xxh3_128())


def seal_end(end: bytes, before: xxhash.xxh3_128) -> bytes:
    """Return the last bytes of a Parquet file, written with PARQUET_PAIR, with its digest in them.

    Args:
        end: from some place before the pair to the end.
        before: state of the digest over all before that; it is used up.
    """
    return _filled(end, _PARQUET, before)


def check_seal(data: bytes) -> bool:
    """Return whether the text of a JSON object is sealed.

    Raises:
        ValueError: it is, and is not as it was written.
    """
    return _check(io.BytesIO(data), _JSON)


def check_sealed_parquet(file: BinaryIO) -> bool:
    """Return whether an open Parquet file is sealed; it is read in blocks.

    Raises:
        ValueError: it is, and is not as it was written.
        OSError: for what the system refuses.
    """
    return _check(file, _PARQUET)


def _filled(data: bytes, form: _Form, state: xxhash.xxh3_128) -> bytes:
    at = data.rindex(form.mark + ZEROS.encode()) + len(form.mark)
    state.update(data)
    return data[:at] + state.hexdigest().encode() + data[at + len(ZEROS) :]


def _check(file: BinaryIO, form: _Form) -> bool:
    start = file.seek(max(0, file.seek(0, os.SEEK_END) - form.tail))
    tail = file.read(form.tail)
    match = form.pattern.search(tail)
    if match is None:
        if _resembles(tail, form):
            raise ValueError("its digest is damaged")
        return False
    state, left = xxhash.xxh3_128(), file.seek(0) + start
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        state.update(block)
        left -= len(block)
    state.update(b"".join((tail[: match.start(1)], ZEROS.encode(), tail[match.end(1) :])))
    if state.hexdigest().encode() != match[1]:
        raise ValueError("its bytes are not those that its digest is of")
    return True


def parse_sealed(data: bytes, *, where: str, infinite: bool = False) -> tuple[Any, bool]:
    """Parse JSON that may be sealed; return the value, and whether it is.

    The digest stays in the value. Arguments and errors as `parse_json`; also UnreadableError
    for a file that is not as it was written.
    """
    try:
        is_sealed = check_seal(data)
    except ValueError as failed:
        text = f"{where}: got a damaged file ({failed}), allowed one as it was written."
        raise UnreadableError(text) from None
    return parse_json(data, where=where, infinite=infinite), is_sealed


def _resembles(tail: bytes, form: _Form) -> bool:
    """Say whether a file was sealed before its last bytes were damaged."""
    return any(
        sum(a == b for a, b in zip(tail[start:], form.mark, strict=False)) >= form.alike
        for start in range(len(tail) - form.alike + 1)
    )
