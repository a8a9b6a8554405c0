from __future__ import annotations

from pipeline.streaming.config import StreamConfig


def keys(config: StreamConfig) -> set[str]:
    return {problem.key for problem in config.problems()}


def test_contradictions_are_listed_together() -> None:
    config = StreamConfig(window=0, fresh_noise=True, keep=True, codec="lowrank8-int8")
    assert {"window", "keep", "codec"} <= keys(config)


def test_settings_of_whole_units_are_refused_where_they_would_do_nothing() -> None:
    assert keys(StreamConfig()) == set()
    idle = StreamConfig(unit_deadline_s=3.0, max_attempts=5, halve_on_oom=True)
    assert keys(idle) == {"unit_deadline_s", "max_attempts", "halve_on_oom"}
