"""Charts: they draw what they are given, in both themes, and never fail on odd input."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.charts import level_curves
from dreamshard import charts
from dreamshard.charts import DARK, LIGHT, Theme, loss_curves, probe_chart, stage_bars


def picture(png: bytes) -> np.ndarray:
    assert len(png) < 60_000
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def shows(pixels: np.ndarray, colour: str) -> bool:
    """Tell whether a colour covers a visible part of the picture."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return bool((np.abs(pixels - wanted).max(axis=-1) <= 6).sum() > 40)


ACCURACIES = {
    "pixels": {1: [50.0, 52.0], 5: [80.0, 81.0]},
    "random student": {1: [40.0, 43.0], 5: [70.0, 72.0]},
    "distilled student": {1: [60.0, 61.0], 5: [85.0, 88.0]},
}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_probe_chart_has_a_colour_per_method_on_its_ground(theme: Theme) -> None:
    pixels = picture(probe_chart(ACCURACIES, theme, ours="distilled student"))
    assert all(shows(pixels, colour) for colour in (*theme.series[:3], theme.background))


def test_probe_chart_leaves_the_gains_out_without_a_method_of_ours() -> None:
    alone = picture(probe_chart(ACCURACIES, LIGHT))
    both = picture(probe_chart(ACCURACIES, LIGHT, ours="distilled student"))
    assert alone.shape[1] < both.shape[1]
    unequal = {"a": {1: [50.0, 60.0]}, "b": {1: [55.0], 5: [70.0]}}
    assert picture(probe_chart(unequal, LIGHT, ours="b")).std() > 0


def test_loss_curves_draw_every_line_of_every_run() -> None:
    falling = [(float(step), float(np.exp(-step / 50))) for step in range(200)]
    curves = {"teacher": {"loss": falling}, "student": {"loss": falling, "mse": falling[::-1]}}
    pixels = picture(loss_curves(curves, LIGHT))
    assert shows(pixels, LIGHT.series[5])
    assert shows(pixels, LIGHT.series[6])


@pytest.mark.parametrize(
    "points", [[(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0), (2.0, 400.0)]]
)
def test_loss_curves_take_short_zero_and_negative_curves(points: list[tuple[float, float]]) -> None:
    assert picture(loss_curves({"run": {"loss": points}}, DARK)).std() > 0


def test_stage_bars_leave_out_what_is_not_known() -> None:
    known = picture(stage_bars({"encode": (12.0, 300.0), "report": (2.0, None)}, LIGHT))
    assert shows(known, LIGHT.series[5])
    assert shows(known, LIGHT.series[3])
    nothing = picture(stage_bars({"report": (None, None)}, LIGHT))
    assert not shows(nothing, LIGHT.series[5])


def test_running_mean_keeps_a_line_and_shortens_at_the_ends() -> None:
    line = np.arange(9.0)
    np.testing.assert_allclose(charts._running_mean(line, 3), line)
    bump = np.array([0.0, 0.0, 9.0, 0.0, 0.0])
    np.testing.assert_allclose(charts._running_mean(bump, 1), [0, 3, 3, 3, 0])


def test_charts_leave_the_global_settings_and_figures_of_matplotlib_alone() -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    stage_bars({"encode": (1.0, 1.0)}, DARK)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_level_curves_draw_every_block() -> None:
    lines = {f"up.{n}": [(0.0, 50.0 + n), (10.0, 60.0), (500.0, 40.0)] for n in range(9)}
    pixels = picture(level_curves({"Linear": lines, "kNN": lines}, LIGHT, xlabel="t", ylabel="%"))
    assert all(shows(pixels, colour) for colour in LIGHT.series[:7])
