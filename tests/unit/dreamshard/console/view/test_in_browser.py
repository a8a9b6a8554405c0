"""The viewer in a real Chromium, by clicking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dreamshard.runfolder import RunFolder
from storage.schema import FeatureBatch, Level
from tests.browser import Page, find_browser, open_page
from tests.feature_store import make_dataset, make_recipe

pytest.importorskip("aiohttp", reason="needs dreamshard[view]")
pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome"),
    pytest.mark.slow,
]

EVIL = "<img src=x onerror=document.title='owned'>.png"
LEVELS = (
    *(Level(f"up.t{t}", "feature", "up", t, 0, "", 4, (3, 4, 4), "float32") for t in (100, 300)),
    Level("emb", "embedding", "gap", 0, 0, "mean", 0, (5,), "float32"),
)
COUNT = 30


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = 1000


def make_samples(root: Path) -> None:
    recipe = make_recipe(levels=LEVELS, count=COUNT, unit=10, codec="raw")
    dataset = make_dataset(root, recipe=recipe, levels=LEVELS, masks=False)
    dataset.grow(COUNT)
    rng = np.random.default_rng(0)
    for unit in range(3):
        index = np.arange(unit * 10, unit * 10 + 10)
        maps = rng.standard_normal((10, 3, 4, 4)).astype(np.float32)
        maps[:, :, 1, 2] = (3, 3, 3)  # the same cell everywhere
        batch = FeatureBatch(
            index=index,
            key=[EVIL if n == 1 else f"photo-{n:03d}.png" for n in index.tolist()],
            valid=index != 7,
            image=rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
            levels={
                **{level.name: maps for level in LEVELS[:2]},
                "emb": rng.random((10, 5), np.float32),
            },
            label=index % 3,
            mask=None,
            error={7: "<b>torn</b>"} if unit == 0 else {},
        )
        with dataset.unit_writer(unit, count=10, run_id="run") as writer:
            writer.write(0, batch)
            writer.commit(input_digest=f"in-{unit}", seconds=0.1)
    dataset.roll_up(final=True)


def log_step(folder: Path, step: int) -> None:
    line = {"time": time.time(), "step": step, "loss": 1 / step, "img_per_s": 100.0 + step}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"wait_percent": 1.5, "memory_gb": 2.5}) + "\n")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    make_samples(root)
    for name in ("first", "second"):
        RunFolder(root / name, config=TrainConfig(), command=["dreamshard", "train"])
        log_step(root / name, 10)
    return root


@pytest.fixture(scope="module")
def page(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    command = [sys.executable, "-m", "dreamshard", "view", str(places), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        url = next(line.strip() for line in server.stdout if line.startswith("http"))
        with open_page(tmp_path_factory.mktemp("browser")) as page:
            page.resize(1400, dark=False)
            page.go(url)
            page.wait("document.body?.dataset.ready === 'yes'")
            yield page
            assert page.failures == []
    finally:
        server.terminate()
        server.wait(20)


SHOWN = "document.querySelector('#grid').dataset.shown === 'yes'"


def number_of(selector: str) -> str:
    return f"document.querySelectorAll({selector!r}).length"


def test_samples_are_clicked_through(page: Page) -> None:
    page.wait(f"{number_of('#grid .cells.map img')} === 24 && {SHOWN}")
    assert page.see("document.title") == "dreamshard view"
    assert EVIL in page.see("document.querySelector('#grid').innerText")
    assert "<b>torn</b>" in page.see("document.querySelector('#grid').innerText")

    before = page.see("document.querySelector('.cells.map img').src")
    page.choose("#basis", "1")
    page.wait(f"document.querySelector('.cells.map img').src !== {before!r} && {SHOWN}")
    page.choose("#timestep", "1")
    assert page.wait("document.querySelector('#timestep-name').textContent") == "300"

    page.wait(SHOWN)
    page.click("#grid figure:nth-child(3) .cells.map img", x=0.6, y=0.4)
    page.wait(f"{number_of('circle.best')} === 24 && {SHOWN}")
    told = page.see("[...document.querySelectorAll('.cells.map img')].map((i) => i.title)")
    alike = [text == "up.t300: cosine 1.000 at most" for text in told]
    assert alike == [n != 7 for n in range(24)]  # that cell is alike in all but the torn one
    assert page.see(number_of("circle.chosen")) == 1
    page.click("#likeness-end")
    page.wait(f"{number_of('circle.best')} === 0 && {SHOWN}")

    page.choose("#other", json.dumps({"d": 0, "level": "up.t100"}, separators=(",", ":")))
    page.wait(f"{number_of('.cells.other img')} === 24 && {SHOWN}")
    page.click("#grid .near")
    page.wait(f"{number_of('#near-grid figure')} === 13")
    page.click("#on")
    page.wait("document.querySelector('#where').textContent === '25–30 of 30'")
    page.choose("#key", "photo-01")
    page.wait("document.querySelector('#where').textContent === '1–10 of 10'")
    page.choose("#label", "1")
    page.wait("document.querySelector('#where').textContent === '1–4 of 4'")
    page.choose("#label", "")
    page.choose("#key", "")
    page.choose("#state", "invalid")
    page.wait("document.querySelector('#where').textContent === '1–1 of 1'")


def test_levels_are_told_with_histograms(page: Page) -> None:
    page.click("#tab-levels")
    page.wait("document.querySelector('#level-list').dataset.ready === 'yes'")
    assert page.see(number_of("#level-list article")) == len(LEVELS)
    assert page.see(number_of("#level-list rect")) == 48 * len(LEVELS)


def test_runs_are_followed_while_they_train(page: Page, places: Path) -> None:
    page.click("#tab-runs")
    page.wait(f"{number_of('.tile')} === 2 && {number_of('polyline.run1')} === 4")
    assert "10 of 1,000" in page.see("document.querySelector('#tiles').innerText")
    log_step(places / "first", 20)
    page.wait("document.querySelector('.tile.run0').innerText.includes('20 of 1,000')")
    assert "time left" in page.see("document.querySelector('.tile.run0').innerText")
    page.click("#run-choice label:nth-child(2) input")
    page.wait(f"{number_of('.tile')} === 1")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(page: Page, width: int, dark: bool) -> None:
    page.resize(width, dark=dark)
    for tab in ("samples", "levels", "runs"):
        page.click(f"#tab-{tab}")
        page.wait(f"!document.querySelector('#{tab}').hidden")
        assert page.see("document.documentElement.scrollWidth") <= width
    lit = page.see("getComputedStyle(document.body).backgroundColor")
    assert (lit == "rgb(20, 23, 27)") is dark
