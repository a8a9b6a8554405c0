"""The few-label table."""

from __future__ import annotations

import numpy as np
import pytest

from distill.bench.bench import Features
from distill.configs.tasks import FewLabelConfig
from distill.tasks.few_label import FewLabel, accuracy_table, gain_table
from dreamshard.errors import DataError
from tests.unit.distill.probes.clusters import LABELS, clusters


@pytest.fixture(scope="module")
def result() -> dict:
    good = Features(clusters(0, spread=0.5), clusters(1, spread=0.5))
    poor = Features(clusters(2, spread=6.0), clusters(3, spread=6.0))
    task = FewLabel(FewLabelConfig(shots=[1, 5], draws=4, selection_draws=2), seed=0)
    reports: list[int] = []
    found = task.judge(
        {"poor": poor, "same": good, "good": good},
        train_labels=LABELS,
        heldout_labels=LABELS,
        report=lambda: reports.append(1),
    )
    assert len(reports) == 3 * 2
    return found


def test_rows_have_one_accuracy_per_draw(result: dict) -> None:
    assert list(result["rows"]) == ["poor", "same", "good"]
    for cells in result["rows"].values():
        assert list(cells) == ["1", "5"]
        for cell in cells.values():
            assert len(cell["accuracy"]) == 4
            assert cell["mean"] == pytest.approx(np.mean(cell["accuracy"]))
            assert cell["std"] == pytest.approx(np.std(cell["accuracy"], ddof=1))
            assert cell["strength"] in (1.0, 10.0, 100.0, 1000.0)
            assert cell["scaling"] in ("standardised", "centred") and 0 < cell["selection"] <= 100


def test_gains_are_paired_by_draw(result: dict) -> None:
    assert result["subject"] == "good"
    assert list(result["paired"]) == ["poor", "same"]
    same = result["paired"]["same"]["5"]
    assert (same["wins"], same["ties"], same["losses"]) == (0, 4, 0) and same["mean"] == 0
    gain = result["paired"]["poor"]["1"]
    expected = np.subtract(
        result["rows"]["good"]["1"]["accuracy"], result["rows"]["poor"]["1"]["accuracy"]
    )
    assert gain["mean"] == pytest.approx(expected.mean()) and gain["wins"] == 4


def test_tables_show_means_and_gains(result: dict) -> None:
    header, lines = accuracy_table(result)
    assert header == ["representation", "1 label/class", "5 labels/class"]
    assert [line[0] for line in lines] == ["poor", "same", "good"] and "±" in lines[0][1]
    assert {cell[-2:] for line in lines for cell in line[1:]} <= {" s", " c"}
    header, lines = gain_table(result)
    assert header == ["good", "1 label", "5 labels"]
    assert lines[1] == ["over same", "+0.0 (0/4)", "+0.0 (0/4)"]


def test_too_few_images_of_a_class_are_named() -> None:
    both = Features(clusters(0, spread=1.0), clusters(1, spread=1.0))
    task = FewLabel(FewLabelConfig(shots=[30]), seed=0)
    with pytest.raises(DataError, match=r"few_label\.shots: got 30, allowed fewer than the 30"):
        task.judge({"a": both}, train_labels=LABELS, heldout_labels=LABELS)


def test_held_out_classes_that_were_never_seen_are_named() -> None:
    both = Features(clusters(0, spread=1.0), clusters(1, spread=1.0))
    task = FewLabel(FewLabelConfig(shots=[1]), seed=0)
    with pytest.raises(DataError, match=r"\[7\]"):
        task.judge({"a": both}, train_labels=LABELS, heldout_labels=np.full(90, 7))
