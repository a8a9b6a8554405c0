"""Which images of a source count as labelled."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.images.labelled import Draw, draw_labelled

TOTAL = 367


@pytest.mark.parametrize("draw", ["random", "even"])
def test_a_draw_repeats_and_holds_the_smaller_ones(draw: Draw) -> None:
    few, more, every = (
        draw_labelled(TOTAL, count=count, seed=3, draw=draw) for count in (20, 40, TOTAL)
    )
    assert len(few) == 20 and len(more) == 40 and set(few) < set(more)
    assert np.array_equal(few, draw_labelled(TOTAL, count=20, seed=3, draw=draw))
    assert not np.array_equal(few, draw_labelled(TOTAL, count=20, seed=4, draw=draw))
    assert np.array_equal(every, np.arange(TOTAL))
    assert np.array_equal(draw_labelled(TOTAL, count=TOTAL + 1, seed=3, draw=draw), every)


@pytest.mark.parametrize("count", [1, 2, 5, 20, 40, 100])
@pytest.mark.parametrize("seed", range(4))
def test_even_draws_leave_no_wide_gap(count: int, seed: int) -> None:
    drawn = draw_labelled(TOTAL, count=count, seed=seed, draw="even")
    gaps = np.diff([*drawn, drawn[0] + TOTAL])  # around the end: the start is drawn
    widest = TOTAL / 2 ** int(np.log2(count))  # what halving gap after gap leaves
    assert gaps.max() <= widest + 1


@pytest.mark.parametrize("total", [1, 2, 3, 7, 8, 9, 1000])
def test_even_draws_work_on_any_number_of_images(total: int) -> None:
    assert np.array_equal(draw_labelled(total, count=total, seed=0, draw="even"), np.arange(total))


def test_one_image_is_drawn_anywhere() -> None:
    firsts = {int(draw_labelled(8, count=1, seed=seed, draw="even")[0]) for seed in range(64)}
    assert firsts == set(range(8))
