"""Feature colours and image grids."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dreamshard.pictures import feature_rgb, fit_colours, image_grid


def features(seed: int = 0, *, count: int = 4, channels: int = 12) -> np.ndarray:
    """Make maps with three directions of variation, of different strength, one long tail each."""
    rng = np.random.default_rng(seed)
    scores = rng.exponential(size=(count, 6, 6, 3)) * np.array([9.0, 3.0, 1.0])
    mixed = scores @ rng.normal(size=(3, channels))
    return np.moveaxis(mixed, -1, 1).astype(np.float32)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_colours_have_the_shape_of_the_maps_and_use_the_whole_range() -> None:
    colours = feature_rgb(features())
    assert colours.shape == (4, 6, 6, 3)
    assert colours.dtype == np.uint8
    for component in range(3):
        assert colours[..., component].min() == 0
        assert colours[..., component].max() == 255


def test_colours_do_not_depend_on_sign_order_or_rotation_of_the_channels() -> None:
    maps = features()
    expected = feature_rgb(maps).astype(int)
    assert np.abs(feature_rgb(maps[:, ::-1]).astype(int) - expected).max() <= 1
    assert np.abs(feature_rgb(-maps).astype(int) - expected).max() <= 1
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    rotated = np.einsum("nchw,cd->ndhw", maps, rotation)
    assert np.abs(feature_rgb(rotated).astype(int) - expected).max() <= 1


def test_first_component_is_the_strongest_direction_with_its_long_tail_bright() -> None:
    maps = np.zeros((1, 5, 8, 8), np.float32)
    maps[0, 2, 3, 4] = 50.0
    maps[0, 4] = np.random.default_rng(0).normal(size=(8, 8))
    red = fit_colours(maps, percentile=0).colours(maps)[0, ..., 0]
    assert red[3, 4] == 255
    assert np.median(red) < 30


def test_one_basis_serves_all_images_of_a_call() -> None:
    maps = features()
    colours = feature_rgb(np.concatenate([maps, maps[:1]]))
    np.testing.assert_array_equal(colours[0], colours[-1])


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_than_three_channels_leave_the_other_colours_grey(channels: int) -> None:
    colours = feature_rgb(features(channels=channels))
    assert (colours[..., channels:] == 128).all()
    assert colours[..., 0].max() == 255


def test_flat_maps_and_missing_cells_are_mid_grey() -> None:
    assert (feature_rgb(np.full((2, 3, 4, 4), 7.0, np.float16)) == 128).all()
    maps = features()
    maps[0, 3, 1, 2] = np.nan
    colours = feature_rgb(maps)
    assert (colours[0, 1, 2] == 128).all()
    assert colours[1].std() > 10
    assert (feature_rgb(np.full((1, 3, 2, 2), np.inf)) == 128).all()


def test_large_half_precision_values_do_not_overflow() -> None:
    maps = (features() * 500).astype(np.float16)
    assert np.isfinite(maps).all()
    assert feature_rgb(maps).std() > 10


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (2, 0, 4, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed \\(N, C, H, W\\)"):
        feature_rgb(np.zeros(shape))


def test_grid_places_images_in_rows_on_a_transparent_ground() -> None:
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = decoded(image_grid(images, columns=2, cell_px=8, gap_px=2))
    assert sheet.shape == (18, 18, 4)
    assert tuple(sheet[0, 0]) == (10, 10, 10, 255)
    assert tuple(sheet[0, 10]) == (20, 20, 20, 255)
    assert tuple(sheet[10, 0]) == (30, 30, 30, 255)
    assert sheet[10, 10, 3] == 0
    assert sheet[0, 8, 3] == 0


def test_grid_enlarges_without_blurring_and_takes_grey_images() -> None:
    checker = (np.indices((2, 2)).sum(axis=0) % 2 * 255).astype(np.uint8)
    sheet = decoded(image_grid(checker[None], cell_px=16))
    assert set(np.unique(sheet[..., :3])) == {0, 255}
    np.testing.assert_array_equal(sheet[..., 0], np.kron(checker, np.ones((8, 8))))


def test_grid_keeps_the_aspect_of_the_images_and_shrinks_large_ones() -> None:
    sheet = decoded(image_grid(np.zeros((1, 64, 128, 3), np.uint8), cell_px=32))
    assert sheet.shape[:2] == (16, 32)
