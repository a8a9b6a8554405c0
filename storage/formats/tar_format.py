"""The bytes of a WebDataset shard: USTAR headers, npy headers, member names, PNG images.

Everything is a function of the samples alone (no time, no owner), so equal samples give equal
shards; and what we read back is compared with what we would have written, never interpreted.
"""

from __future__ import annotations

import json
import re
import struct
import zlib

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import ArraySpec
from storage.codecs.npy import npy_header

BLOCK = 512
END = b"\0" * (2 * BLOCK)
MAX_NAME = 100  # of a USTAR member without folders
MAX_MEMBER = 0o77777777777  # bytes that the size field can state
_INDEX_DIGITS = 9
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_LEVEL = 3
_MAX_SIDE = 1 << 16


def extension(spec: ArraySpec) -> str:
    """Return what an array's members end with: `.png` for images so stored, else `.<name>.npy`."""
    return ".png" if spec.compression == "png" else f".{spec.name}.npy"


def member_key(index: int, key: str, *, room: int) -> str:
    """Return a sample's WebDataset key: its index, then the source's name, escaped, if it fits.

    The source's name with every byte but letters, digits, `_` and `-` written %XX, so that no dot,
    slash or space changes what the member is; `urllib.parse.unquote` gives it back.

    Args:
        index: number of the sample in the dataset.
        key: the source's own name.
        room: bytes the key may have.
    """
    number = f"{index:0{_INDEX_DIGITS}d}"
    escaped = _UNSAFE.sub(lambda byte: b"%%%02X" % byte[0][0], key.encode("utf-8", "replace"))
    whole = f"{number}-{escaped.decode('ascii')}"
    return whole if key and len(whole) <= room else number


def header(name: str, size: int) -> bytes:
    """Return a USTAR header block of a plain file: mode 0644, owner 0, time 0.

    Raises:
        DataError: if name or size do not fit.
    """
    text = name.encode("ascii")
    if len(text) > MAX_NAME or not 0 <= size <= MAX_MEMBER:
        raise DataError(
            f"tar member {name:.120}: got {len(text)} characters and {size} bytes, allowed "
            f"{MAX_NAME} and {MAX_MEMBER}."
        )
    filled = text.ljust(MAX_NAME, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size
    filled += b"00000000000\0"
    rest = b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247
    checksum = sum(filled) + sum(rest) + 8 * 32
    return filled + b"%06o\0 " % checksum + rest


class MemberHeader:
    """Make the headers of one kind of member fast: all but name and checksum is known before.

    Args:
        ending: what the members' names end with.
        size: bytes of each.
        prefix: bytes that follow the header, such as an npy header; counted in `size`.
    """

    def __init__(self, ending: str, size: int, prefix: bytes = b"") -> None:
        empty = header("", size)
        self._ending = ending.encode("ascii")
        self._middle, self._tail = empty[MAX_NAME:148], empty[156:] + prefix
        self._sum = sum(empty[:148]) + sum(empty[156:]) + 8 * 32 + sum(self._ending)

    def __call__(self, key: bytes, key_sum: int) -> bytes:
        """Return header and prefix of the member of a sample, whose bytes add up to `key_sum`."""
        name = (key + self._ending).ljust(MAX_NAME, b"\0")
        return b"%b%b%06o\0 %b" % (name, self._middle, self._sum + key_sum, self._tail)


def padding(size: int) -> int:
    """Return how many bytes are missing to a whole block."""
    return -size % BLOCK


def npy_front(spec: ArraySpec) -> bytes:
    """Return the header of an npy file with one row of an array; always the same for an array."""
    return npy_header(spec.dtype, spec.shape)


def json_member(
    *, index: int, key: str, label: int | None, valid: bool, error: str | None
) -> bytes:
    """Return a sample's JSON: index, the source's own key, label, usability and what is wrong.

    Every sample of a dataset has the same fields of the same types, as Hugging Face's builder takes
    its columns from the first ones: the label of an unlabelled sample is -1 where others have one,
    null where the dataset has none; the error of a usable one is "".
    """
    value = {"index": index, "key": key, "label": label, "valid": valid, "error": error or ""}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def older_json_member(
    *, index: int, key: str, label: int | None, valid: bool, error: str | None
) -> bytes:
    """Return a sample's JSON as version 0.1.0 wrote it at first: null for -1, no error for none."""
    known = None if label == -1 else label
    value: dict[str, object] = {"index": index, "key": key, "label": known, "valid": valid}
    if error is not None:
        value["error"] = error
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_front(height: int, width: int) -> bytes:
    return _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


_IEND = _chunk(b"IEND", b"")


def encode_png(image: np.ndarray) -> bytes:
    """Return a PNG of an image, uint8 (H, W, 3); each row filtered by the one above it."""
    height, width, _ = image.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    flat = image.reshape(height, -1)
    lines[:, 0] = 2
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    return (
        _png_front(height, width) + _chunk(b"IDAT", zlib.compress(lines.data, _PNG_LEVEL)) + _IEND
    )


def decode_png(data: bytes | memoryview, shape: tuple[int, ...], *, where: str) -> np.ndarray:
    """Read a PNG that `encode_png` wrote, of exactly the size expected.

    Raises:
        DataError: on anything else; no more memory is used than the image needs.
    """
    height, width, _ = shape
    view, front = bytes(data), _png_front(height, width)
    try:
        packed = view[len(front) + 8 : -len(_IEND) - 4]
        if max(shape) > _MAX_SIDE or view != front + _chunk(b"IDAT", packed) + _IEND:
            raise ValueError("not a PNG of ours of that size, or a checksum that does not match")
        unpacker, size = zlib.decompressobj(), height * (1 + 3 * width)
        lines = np.frombuffer(unpacker.decompress(packed, size + 1), np.uint8)
        lines = lines.reshape(height, 1 + 3 * width)
        if (lines[:, 0] != 2).any():
            raise ValueError("another filter")
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{where}: got a damaged image ({error!s:.120}), allowed a PNG of {width} x {height} "
            "as written. Run `dreamshard verify --repair` on the dataset."
        ) from None
    return np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8).reshape(shape)
