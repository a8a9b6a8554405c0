from __future__ import annotations

import pytest
import torch

from pipeline.teachers.pixels import signed, to_uint8


def test_every_grey_level_comes_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    images = signed(pixels)
    assert images.dtype == torch.float32 and images.shape == (2, 3, 16, 16)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), pixels)
    assert torch.equal(to_uint8(images.double()), pixels)


def test_values_are_rounded_and_clipped() -> None:
    images = torch.tensor([-1.5, -1.0, 0.5 / 127.5 - 1 + 1e-4, 0.999, 2.0]).view(1, 1, 1, 5)
    assert to_uint8(images.expand(1, 3, 1, 5))[0, 0, :, 1].tolist() == [0, 0, 1, 255, 255]


def test_channels_move_to_the_end() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 3), dtype=torch.uint8)
    # A product and a sum in one rounding or in two: a few 1e-8, depending on the CPU.
    assert float(signed(pixels)[1, 2, 0, 3]) == pytest.approx(
        float(pixels[1, 0, 3, 2]) / 127.5 - 1, abs=1e-6
    )
