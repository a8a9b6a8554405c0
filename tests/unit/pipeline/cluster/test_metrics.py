"""Metrics with Ray's part played by a recorder; without Ray nothing is imported or counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import metrics
from pipeline.cluster.metrics import Metrics

ROOT = Path(__file__).resolve().parents[4]


class Recorder:
    """Stands for every counter and gauge."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, dict[str, str]]] = []

    def __call__(self, name: str) -> object:
        calls = self.calls

        class One:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                calls.append((name, value, tags))

            set = inc

        return One()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(metrics, "_metric", made)
    monkeypatch.setattr(metrics, "_in_ray", lambda: True)
    return made


def test_counters_add_what_is_more_than_nothing(recorder: Recorder) -> None:
    Metrics("offline", "r").count(images=3, bytes=0, retries=1)
    tags = {"part": "offline", "run": "r"}
    assert recorder.calls == [("dreamshard_images", 3, tags), ("dreamshard_retries", 1, tags)]


def test_gauges_are_shares_of_the_time_passed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    told = metrics.Metrics("online", "r")
    now[0] += 0.5
    told.spend(busy_s=0.4, write_wait_s=0.1)
    assert not recorder.calls  # too early
    now[0] += 1.5
    told.spend(busy_s=1.0, write_wait_s=0.3)
    assert [(name, round(value, 3)) for name, value, _ in recorder.calls] == [
        ("dreamshard_busy_share", 0.7),
        ("dreamshard_write_wait_s", 0.2),
    ]


def test_every_metric_is_one_that_ray_takes() -> None:
    pytest.importorskip("ray")
    for name in (*metrics.COUNTERS, *metrics.GAUGES):
        assert metrics._metric(name) is metrics._metric(name)


def test_without_ray_nothing_is_imported() -> None:
    code = """
import sys
from pipeline.cluster import metrics
metrics.PERIOD_S = 0.0
told = metrics.Metrics("offline", "r")
told.count(images=1)
told.spend(busy_s=1.0)
print("ray" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
