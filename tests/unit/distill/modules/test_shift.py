"""The moved image by hand, and that what is compared is of the same places."""

from __future__ import annotations

import torch

from distill.modules.shift import CellShift, windows
from tests.unit.distill.small_data import LEVELS

COARSE, FINE = LEVELS
"""Strides 4 and 2 of images of 16 pixels."""


def test_an_image_is_moved_by_whole_cells_and_its_border_repeats() -> None:
    shift = CellShift(1, [COARSE, FINE], seed=0)
    images = torch.arange(16.0).expand(64, 3, 16, 16)  # each pixel is its column
    moved = shift(images, torch.arange(64))
    assert shift.grid == 4 and shift.moved is not None
    assert sorted(set(shift.moved.flatten().tolist())) == [-1, 0, 1]
    for row, (_, columns) in enumerate(shift.moved.tolist()):
        expected = (torch.arange(16) + 4 * columns).clamp(0, 15).float()
        assert torch.equal(moved[row], expected.expand(3, 16, 16))


def test_what_is_compared_is_of_the_same_places() -> None:
    """A student that is a mean over cells predicts the teacher's of the same kind exactly."""
    shift = CellShift(1, [COARSE, FINE], seed=1)
    images = torch.randn(32, 3, 16, 16)
    pool = torch.nn.functional.avg_pool2d
    moved = shift(images, torch.arange(32))
    student = shift.inner({lv.name: pool(moved, lv.stride) for lv in LEVELS})
    teacher = shift.seen({lv.name: pool(images, lv.stride) for lv in LEVELS})
    assert student[COARSE.name].shape == (32, 3, 2, 2)
    assert student[FINE.name].shape == (32, 3, 4, 4)
    for name in student:
        torch.testing.assert_close(student[name], teacher[name])
    unmoved = shift.inner({COARSE.name: pool(images, 4)})[COARSE.name]
    assert not torch.allclose(unmoved, teacher[COARSE.name])


def test_windows_keep_the_order_in_memory() -> None:
    values = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    rows = torch.tensor([[0, 1], [2, 3]])
    found = windows(values, rows, rows)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[1], values[1, :, 2:, 2:])
