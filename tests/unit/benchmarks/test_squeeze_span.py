"""The tables of Squeeze-and-Span's rows: pairs by seed, and what cannot be told."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import squeeze_span


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    (tmp_path / "results").mkdir()
    return Namespace(out=tmp_path, results=None, seeds=[0, 1, 2], machine="here", about="random")


def finish(options: Namespace, name: str, seed: int, value: float | None, **settings: Any) -> None:
    row = dict.fromkeys(squeeze_span.FIGURES, value) | {"student_images": 8}
    path = squeeze_span.result_path(name, options, seed=seed)
    path.write_text(json.dumps(row | {"settings": {"width": 16} | settings}))


def test_rows_are_paired_by_the_seeds_that_both_have(options: Namespace) -> None:
    for seed in (0, 1, 2):
        finish(options, "e", seed, 40.0 + seed)
    for seed in (1, 2):
        finish(options, "f", seed, 42.0 + seed)
    result = squeeze_span.report(options)
    assert result["table"]["e"]["linear_100"]["mean"] == 41 and result["table"]["f"]["seeds"] == 2
    found = result["differences"]["f - e"]["linear_100"]
    assert found["difference"] == 2 and found["half_interval"] == pytest.approx(0)
    (sheet,) = options.out.glob("*.md")
    assert "| f - e | 2 ± 0 |" in sheet.read_text()


def test_a_discrepancy_without_a_kernel_width_is_no_figure(options: Namespace) -> None:
    finish(options, "e", 0, 1.0)
    finish(options, "f", 0, None)
    result = squeeze_span.report(options)
    assert result["table"]["f"]["mmd"]["mean"] is None and not result["differences"]


def test_runs_of_different_settings_are_not_one_table(options: Namespace) -> None:
    with pytest.raises(SystemExit, match="no runs"):
        squeeze_span.report(options)
    finish(options, "e", 0, 1.0)
    finish(options, "f", 0, 1.0, width=32)
    with pytest.raises(SystemExit, match="different settings"):
        squeeze_span.report(options)
