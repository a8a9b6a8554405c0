"""Turn what a source holds into the pixels a teacher takes, by stated rules; make views of them.

Rules. Formats: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM (first frame). EXIF orientation is ignored, as
in torchvision and the published pipelines. Grey is repeated, alpha is dropped, CMYK and palettes
are converted by Pillow; 16-bit (TIFF: 12-bit) grey keeps its upper 8 bits, unless all of them are
empty; colour profiles are ignored. Size: the short side is fitted, the long side is
`int(size * long / short)`, the crop starts at `round((long - size) / 2)`; an image already of the
size is not resampled. Masks follow the same geometry with nearest neighbour and keep their numbers;
those packed with loss or stored otherwise than as they are meant are refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dreamshard.rng import uniform
from pipeline.images.source import ImageConfig, Record

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""No others: some of Pillow's readers start programs (EPS) or are rarely exercised."""
READ = " | ".join(FORMATS)
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
STRETCHED = {"L;2": 85, "L;4": 17}
"""By how much numbers of few bits are stretched to 0 .. 255 where they are read as grey."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs; it warns there, here it is an invalid image. What
would be resized to more than this (a line of 1 x 20,000 pixels to 5 GB) is resized in part."""
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "adm": Image.Resampling.BICUBIC,
}


class InvalidImageError(ValueError):
    """Say why an image cannot be used; it becomes a row with `valid = False`."""


def decode(data: bytes | np.ndarray | None) -> Image.Image:
    """Decode untrusted bytes, or wrap an array, as an RGB image.

    Raises:
        InvalidImageError: whatever is wrong with it.
    """
    return _decoded(data, _to_rgb, "")


def decode_mask(data: bytes | np.ndarray) -> Image.Image:
    """Decode a mask (grey or palette numbers, uint8) as a one-channel image."""
    return _decoded(data, _to_numbers, "mask: ")


def fit(
    image: Image.Image, *, config: ImageConfig, size: tuple[int, int], mask: bool = False
) -> Image.Image:
    """Bring an image to (height, width) by the rules above."""
    height, width = size
    if image.size == (width, height):
        return image
    filter_ = Image.Resampling.NEAREST if mask else FILTERS[config.resize]
    if config.crop == "squash":
        return image.resize((width, height), filter_)
    if config.resize == "adm" and not mask:
        while min(image.size) >= 2 * min(size):
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = max(width / image.width, height / image.height)
    wide, high = max(width, int(image.width * ratio)), max(height, int(image.height * ratio))
    left, top = round((wide - width) / 2), round((high - height) / 2)
    if wide * high > max(MAX_PIXELS, 4 * width * height):
        return _fit_part(image, (wide, high), (left, top), size, filter_)
    image = image.resize((wide, high), filter_)
    return image.crop((left, top, left + width, top + height))


def _fit_part(
    image: Image.Image,
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    filter_: Image.Resampling,
) -> Image.Image:
    """Resize no more of a very long image than the crop shows, and what the filter sees around."""
    lows, highs, crops = [], [], []
    for axis, wanted in ((0, size[1]), (1, size[0])):
        margin = 4 * max(1, math.ceil(whole[axis] / image.size[axis]))
        lows.append(max(0, corner[axis] - margin))
        highs.append(min(whole[axis], corner[axis] + wanted + margin))
        crops.append(corner[axis] - lows[axis])
    scales = [image.size[axis] / whole[axis] for axis in (0, 1)]
    box = (lows[0] * scales[0], lows[1] * scales[1], highs[0] * scales[0], highs[1] * scales[1])
    part = image.resize((highs[0] - lows[0], highs[1] - lows[1]), filter_, box=box)
    return part.crop((crops[0], crops[1], crops[0] + size[1], crops[1] + size[0]))


def jitter(
    image: Image.Image, draws: Sequence[float], *, config: ImageConfig, mask: bool = False
) -> Image.Image:
    """Shift, scale and rotate an image about its centre; its edge is repeated where it ends.

    Args:
        image: any size.
        draws: four numbers in [0, 1) for shift right, shift down, scale and rotation.
    """
    right, down, size, turn = (2 * draw - 1 for draw in draws)
    width, height = image.size
    shift = (right * config.shift * width, down * config.shift * height)
    scale = 1 + size * config.scale
    angle = math.radians(turn * config.rotate)
    # As far out as a corner can come from.
    reach = math.hypot(width, height) / (2 * (1 - config.scale)) + math.hypot(*shift)
    pad = max(0, math.ceil(reach - min(width, height) / 2) + 2)
    padded = Image.fromarray(_extend(np.asarray(image), pad))
    # Pillow maps output pixel centres to input: x = a u + b v + c. Inverse of rotate, scale, shift.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    centre_x, centre_y = width / 2 + shift[0], height / 2 + shift[1]
    offset_x = pad + width / 2 - cos * centre_x - sin * centre_y
    offset_y = pad + height / 2 + sin * centre_x - cos * centre_y
    matrix = (cos, sin, offset_x, -sin, cos, offset_y)
    filter_ = Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC
    return padded.transform((width, height), Image.Transform.AFFINE, matrix, filter_)


def view_draws(seed: int, indices: Sequence[int]) -> np.ndarray:
    """Draw five numbers a sample, float64 (N, 5) in [0, 1): four for `jitter`, one for the flip."""
    return uniform(seed, indices, 0, "view", (5,))


def prepare(
    image: Image.Image,
    *,
    config: ImageConfig,
    size: tuple[int, int],
    seed: int,
    index: int,
    mask: bool = False,
) -> np.ndarray:
    """Make sample `index` of an image: fitted, jittered unless it is view 0, flipped if drawn.

    Returns:
        uint8 (H, W, 3), or (H, W) for a mask.
    """
    fitted = fit(image, config=config, size=size, mask=mask)
    view = index % config.views
    if view or config.flip == "random":
        draws = view_draws(seed, [index])[0]
        if view:
            fitted = jitter(fitted, draws[:4].tolist(), config=config, mask=mask)
        if config.flip == "random" and draws[4] < 0.5:
            fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(fitted, np.uint8)


def prepare_record(
    record: Record, *, config: ImageConfig, size: tuple[int, int], seed: int, index: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a record's image and, where it has one, its mask, and prepare both alike.

    Returns:
        uint8 (H, W, 3); uint8 (H, W) or None.

    Raises:
        InvalidImageError: the record could not be read, one cannot be decoded, or they differ in
            size.
    """
    if record.error:
        raise InvalidImageError(record.error)
    image = decode(record.data)
    pixels = prepare(image, config=config, size=size, seed=seed, index=index)
    if record.mask is None:
        return pixels, None
    mask = decode_mask(record.mask)
    if mask.size != image.size:
        raise InvalidImageError(f"mask of {mask.size}, image of {image.size}")
    return pixels, prepare(mask, config=config, size=size, seed=seed, index=index, mask=True)


def _extend(array: np.ndarray, pad: int) -> np.ndarray:
    """Repeat the edge `pad` times on every side; np.pad takes ten times as long."""
    rows, columns = (np.arange(-pad, size + pad).clip(0, size - 1) for size in array.shape[:2])
    return array.take(rows, axis=0).take(columns, axis=1)


def _open(data: bytes | np.ndarray | None) -> Image.Image:
    if data is None or len(data) == 0:
        raise InvalidImageError("empty: the source has no bytes for it")
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise InvalidImageError(f"array of {data.dtype}, expected uint8")
        channels = data.shape[2:] or (1,)
        if data.ndim not in (2, 3) or channels[0] not in (1, 3, 4) or not data.size:
            raise InvalidImageError(f"array {data.shape}, expected (H, W) or (H, W, 1 | 3 | 4)")
        return Image.fromarray(data[..., 0] if data.ndim == 3 and data.shape[2] == 1 else data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:  # its text holds an address: no two runs' are equal
        raise InvalidImageError(f"no {READ} image, or its head is damaged") from error
    if image.width * image.height > MAX_PIXELS:
        raise InvalidImageError(f"{image.width}x{image.height} pixels, limit {MAX_PIXELS:,}")
    return image


def _decoded(
    data: bytes | np.ndarray | None, convert: Callable[[Image.Image], Image.Image], prefix: str
) -> Image.Image:
    try:
        return convert(_open(data))
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise a dozen types on hostile bytes
        raise InvalidImageError(f"{prefix}{type(error).__name__}: {error}"[:200]) from error


def _stored(image: Image.Image) -> tuple[str, int]:
    """Return how an image's numbers are stored, in Pillow's words, and a PPM's largest.

    Only before it is loaded: decoders stretch, invert and scale what they read to 0 .. 255.
    """
    tiles = getattr(image, "tile", None)  # of one that comes out of a file
    told = tiles[0][3] if tiles else image.mode
    parts = told if isinstance(told, tuple) else (told,)
    raw = parts[0] if isinstance(parts[0], str) else image.mode
    largest = parts[1] if image.format == "PPM" and len(parts) > 1 else 255
    return raw, int(largest)


def _to_numbers(image: Image.Image) -> Image.Image:
    (raw, largest), lossy = _stored(image), image.format in ("JPEG", "MPO")
    if lossy or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise InvalidImageError("mask: packed with loss, which moves class numbers; expected PNG")
    if image.mode not in ("L", "P", "1"):
        raise InvalidImageError(f"mask: mode {image.mode}, expected one channel of 8 bits")
    if largest != 255 or (image.mode == "L" and raw.endswith("I")):
        raise InvalidImageError(
            f"mask: numbers stored as {raw}, 0 to {largest}, which are stretched or inverted where "
            "they are read; expected 8 bits as they are, such as PNG"
        )
    image.load()
    # Through an array: a palette image would be resampled as colours otherwise.
    numbers = np.asarray(image).astype(np.uint8)
    return Image.fromarray(numbers // STRETCHED.get(raw, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    image.load()
    if image.mode.startswith("I"):
        return _upper_byte(np.asarray(image).astype(np.int64), tags).convert("RGB")
    if image.mode == "F":
        raise InvalidImageError("float pixels have no stated range, expected 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_byte(values: np.ndarray, tags: Mapping[int, Any]) -> Image.Image:
    """Return deep grey as 8 bits; refuse what has no stated range, or would come out black.

    Args:
        values: int64 (H, W).
        tags: of a TIFF; empty for other formats, which state their range.
    """
    bits = (tags.get(TIFF_BITS) or (16,))[0]
    if bits == 32 or values.min() < 0 or values.max() > 65535:
        raise InvalidImageError("32-bit grey has no stated range, expected 8 or 16 bits")
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # Pillow inverts 8 bits, not 16
        values = (1 << bits) - 1 - values
    upper = values >> (bits - 8)
    if values.any() and not upper.any():
        raise InvalidImageError(
            f"{bits}-bit grey of values up to {values.max()}, which is black: its upper 8 bits are "
            "empty. Store 8 bits, or use the whole range"
        )
    return Image.fromarray(upper.astype(np.uint8))
