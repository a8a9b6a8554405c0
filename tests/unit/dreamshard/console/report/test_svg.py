"""Vector pictures: every value in its place and under the pointer, no text becomes markup."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from dreamshard.console.report.svg import COLUMNS, Axis, bars, curves


def test_an_axis_places_values_in_proportion() -> None:
    linear = Axis(0.0, 10.0, 100.0, 200.0)
    assert [linear(value) for value in (0.0, 2.5, 10.0)] == [100.0, 125.0, 200.0]
    logarithmic = Axis(1.0, 100.0, 100.0, 200.0, logarithmic=True)
    assert logarithmic(10.0) == pytest.approx(150.0)
    assert Axis(3.0, 3.0, 0.0, 1.0)(3.0) == 0.0
    assert linear.ticks() == [0, 2, 4, 6, 8, 10]
    assert logarithmic.ticks(9) == [1, 2, 5, 10, 20, 50, 100]


def told(svg: str) -> list[str]:
    return [title.text or "" for title in ET.fromstring(svg).iter("title")]


def test_curves_tell_every_value_at_the_pointers_place() -> None:
    svg = curves("Student", {"loss": [(10, 2.0), (20, 1.5)], "mse": [(20, 0.25)]}, y="loss")
    assert told(svg) == ["step 10\nloss 2", "step 20\nloss 1.5\nmse 0.25"]
    lines = [line.get("points", "") for line in ET.fromstring(svg).iter("polyline")]
    assert [len(line.split()) for line in lines] == [2, 1]
    first, second = (float(at.split(",")[1]) for at in lines[0].split())
    assert first < second, "a smaller loss is drawn lower"


def test_long_curves_answer_at_a_bounded_number_of_places_the_last_among_them() -> None:
    svg = curves("Student", {"loss": [(step, 1 / step) for step in range(1, 5000)]})
    assert len(told(svg)) == COLUMNS
    assert told(svg)[-1].startswith("step 4,999")


def test_values_that_are_not_finite_are_left_out_and_nothing_is_refused() -> None:
    points = [(1.0, math.nan), (2.0, 3.0), (3.0, math.inf)]
    assert told(curves("Student", {"loss": points})) == ["step 2\nloss 3"]
    with pytest.raises(ValueError, match="no finite point"):
        curves("Student", {"loss": [(1.0, math.nan)]})


def test_bars_stand_in_groups_and_are_as_high_as_their_values() -> None:
    svg = bars("k-NN", {"pixels": {"k=1": 30.0}, "ours": {"k=1": 60.0, "k=5": 66.0}}, ours="ours")
    assert told(svg) == ["pixels, k=1: 30 %", "ours, k=1: 60 %", "ours, k=5: 66 %"]
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"><title', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.11)
    assert svg.count(" ours") >= 2
    with pytest.raises(ValueError, match="no value"):
        bars("k-NN", {})


def test_names_are_texts() -> None:
    svg = curves("<script>", {"</svg><b>\x1b[31m": [(1.0, 1.0)]})
    assert "<script>" not in svg and "<b>" not in svg and "\x1b" not in svg
    assert [element.tag for element in ET.fromstring(svg).iter("script")] == []
