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


def png(width: int, height: int, bits: int, rows: bytes, *, colour: int = 0) -> bytes:
    """A PNG by its own words; colour 0 is grey, 2 RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60000 x 60000."""
    return png(60000, 60000, 8, b"\0" * 100, colour=2)


JPEG = encoded(smooth(32, 32), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no bytes"),
        (None, "no bytes"),
        (b"not an image", r"no JPEG \| PNG .* image"),
        (JPEG[: len(JPEG) - 40], "truncated"),
        (JPEG[:20], "its head is damaged"),
        (bomb(), "pixels|exceeds"),
        (EPS, "no JPEG"),
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
        decode_mask(encoded(smooth(8, 8), "PNG"))


def shallow(bits: int, value: int) -> bytes:
    """A grey PNG of 8 x 8 equal numbers of few bits."""
    packed = sum(value << shift for shift in range(0, 8, bits))
    return png(8, 8, bits, (b"\0" + bytes([packed]) * bits) * 8)


def test_masks_of_few_bits_keep_their_numbers() -> None:
    for bits, value in ((1, 1), (2, 2), (4, 9)):
        assert set(np.asarray(decode_mask(shallow(bits, value))).flat) == {value}
    assert np.asarray(decode(shallow(4, 15))).min() == 255  # an image is stretched


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A grey TIFF, uncompressed, of numbers that are packed already."""
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 8}
    tags[279], tags[273] = values.nbytes, 8 + 2 + 12 * 9 + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, 9) + entries + bytes(4) + values.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(np.eye(8, dtype=np.uint8)), "JPEG"),
        encoded(Image.fromarray(np.eye(8, dtype=np.uint8)), "WEBP"),
        b"P5 8 8 20\n" + bytes(64),
        tiff(np.zeros(64, np.uint8), 8, 0),
    ],
    ids=["jpeg", "webp", "stretched", "white is zero"],
)
def test_masks_whose_numbers_are_moved_where_they_are_read_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImageError, match="mask: "):
        decode_mask(data)


def test_deep_grey_has_the_range_that_its_file_states() -> None:
    """A 16-bit number of which Pillow knows what is white; 12 bits are not the dark 16."""
    ones = np.full(64, 0xFFFF, "<u2")
    assert np.asarray(decode(tiff(ones, 16, 1))).min() == 255
    assert np.asarray(decode(tiff(ones, 16, 0))).max() == 0
    assert np.asarray(decode(tiff(np.full(96, 255, np.uint8), 12, 1))).min() == 255
    assert np.asarray(decode(tiff(0 * ones, 16, 1))).max() == 0  # black is black
    with pytest.raises(InvalidImageError, match="up to 200, which is black: its upper 8 bits"):
        decode(encoded(Image.fromarray(np.full((8, 8), 200, np.uint16)), "PNG"))
    with pytest.raises(InvalidImageError, match="32-bit grey has no stated range"):
        decode(encoded(Image.fromarray(np.full((8, 8), 60000, np.int32)), "TIFF"))


@pytest.mark.parametrize("shape", [(8,), (3, 8, 8), (8, 8, 2), (8, 0, 3), (1, 8, 8, 3)])
def test_arrays_of_other_shapes_are_invalid(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidImageError, match="expected"):
        decode(np.zeros(shape, np.uint8))


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
