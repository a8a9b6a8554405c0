"""Images of every kind come out as the rules say; hostile ones are invalid, nothing worse."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.images.prepare import InvalidImageError, decode, decode_mask, fit, jitter, prepare
from pipeline.images.source import ImageConfig

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def smooth(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    else:
        image = smooth(8, 8).convert(mode)
    decoded = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB" and decoded.size == (8, 8)
    if mode == "I;16":  # the upper byte, where Pillow's own conversion would clip to white
        assert np.asarray(decoded)[0, 1, 0] == 1000 >> 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_formats(format: str) -> None:
    assert decode(encoded(smooth(9, 7), format)).size == (7, 9)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60000 x 60000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


JPEG = encoded(smooth(32, 32), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no bytes"),
        (None, "no bytes"),
        (b"not an image", "cannot identify"),
        (JPEG[: len(JPEG) - 40], "truncated"),
        (JPEG[:20], "OSError|Error"),
        (bomb(), "pixels|exceeds"),
        (EPS, "cannot identify"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "float pixels"),
    ],
    ids=["empty", "none", "text", "half", "stub", "bomb", "eps", "floats", "float tiff"],
)
def test_hostile_images_are_invalid(data: bytes | np.ndarray | None, says: str) -> None:
    with pytest.raises(InvalidImageError, match=says):
        decode(data)


def test_random_damage_never_raises_anything_else() -> None:
    png = encoded(smooth(16, 16), "PNG")
    for source in (JPEG, png):
        for _ in range(150):
            data = bytearray(source)
            for place in RNG.integers(0, len(data), 4):
                data[place] = RNG.integers(256)
            try:
                assert decode(bytes(data)).mode == "RGB"
            except InvalidImageError:
                pass


def test_an_image_of_the_size_is_not_touched() -> None:
    array = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = prepare(decode(array), config=ImageConfig(), size=(16, 16), seed=0, index=5)
    assert np.array_equal(out, array)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 7), (1, 90), (33, 32)])
@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "lanczos", "box", "adm"])
def test_short_side_and_centre(shape: tuple[int, int], resize: str) -> None:
    config = ImageConfig(resize=resize)  # pyright: ignore[reportArgumentType]
    assert fit(smooth(*shape), config=config, size=(16, 16)).size == (16, 16)


def test_the_crop_is_the_centre_and_squash_keeps_everything() -> None:
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, :8], array[:, 16:] = 100, 200
    image = Image.fromarray(array)
    assert np.asarray(fit(image, config=ImageConfig(), size=(8, 8))).max() == 0
    squashed = np.asarray(fit(image, config=ImageConfig(crop="squash"), size=(8, 8)))
    assert squashed[4, 0, 0] > 90 and squashed[4, -1, 0] > 190


def test_masks_follow_with_their_numbers() -> None:
    array = np.zeros((20, 40), np.uint8)
    array[:, 20:] = 7
    mask = decode_mask(encoded(Image.fromarray(array), "PNG"))
    out = np.asarray(fit(mask, config=ImageConfig(), size=(10, 10), mask=True))
    assert set(np.unique(out)) == {0, 7}
    palette = Image.fromarray(array).convert("P")
    assert np.array_equal(np.asarray(decode_mask(encoded(palette, "PNG"))), array)
    with pytest.raises(InvalidImageError, match="one channel"):
        decode_mask(JPEG)


def test_jitter_without_range_changes_nothing_and_a_shift_goes_right() -> None:
    still = ImageConfig(views=2, shift=0, scale=0, rotate=0)
    image = smooth(16, 16)
    assert np.array_equal(jitter(image, [0.9] * 4, config=still), image)
    dot = np.zeros((16, 16), np.uint8)
    dot[8, 8] = 255
    config = ImageConfig(views=2, shift=0.25, scale=0, rotate=0)
    moved = np.asarray(jitter(Image.fromarray(dot), [1.0, 0.5, 0, 0], config=config, mask=True))
    assert moved[8, 12] == 255 and moved.sum() == 255


def test_views_depend_on_seed_and_index_alone() -> None:
    config, image = ImageConfig(views=3), smooth(16, 16)

    def view(index: int, seed: int = 0) -> np.ndarray:
        return prepare(image, config=config, size=(16, 16), seed=seed, index=index)

    assert np.array_equal(view(0), image) and np.array_equal(view(3), image)
    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2)) and not np.array_equal(view(1), view(4))
    assert not np.array_equal(view(1), view(1, seed=1))


def test_half_of_the_samples_are_mirrored() -> None:
    config, image = ImageConfig(flip="random"), smooth(8, 8)
    plain = np.asarray(image)
    mirrored = 0
    for index in range(200):
        out = prepare(image, config=config, size=(8, 8), seed=0, index=index)
        assert np.array_equal(out, plain) or np.array_equal(out, plain[:, ::-1])
        mirrored += not np.array_equal(out, plain)
    assert 70 < mirrored < 130
