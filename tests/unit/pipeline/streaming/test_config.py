from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.config import check
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.config import PartConfig, StreamConfig


def keys(config: StreamConfig) -> set[str]:
    return {problem.key for problem in config.problems()}


def test_contradictions_are_listed_together() -> None:
    config = StreamConfig(window=0, fresh_noise=True, keep=True, codec="lowrank8-int8")
    assert {"window", "keep", "codec"} <= keys(config)


def test_settings_of_whole_units_are_refused_where_they_would_do_nothing() -> None:
    assert keys(StreamConfig()) == set()
    idle = {"unit_deadline_s": 3.0, "max_attempts": 5, "halve_on_oom": True, "assume": {}}
    config, problems = check(StreamConfig, idle)
    assert config is None and {problem.key for problem in problems} == set(idle)
    assert {problem.got for problem in problems} == {"an unknown key"}


def test_paths_of_every_source_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "more", "shards"):
        (tmp_path / name).mkdir()
    config = StreamConfig(
        source=SourceConfig(kind="folder", path="images"),
        mix=[
            PartConfig(dataset="shards"),
            PartConfig(mode="encode", source=SourceConfig(kind="folder", path="more")),
        ],
    ).settled()
    assert config.source.path == str(tmp_path / "images")
    assert config.mix[0].dataset == str(tmp_path / "shards")
    assert config.mix[1].source.path == str(tmp_path / "more")


def test_a_stream_asks_for_what_offline_runs_would() -> None:
    mix = [
        PartConfig(dataset="data/x", weight=2),
        PartConfig(mode="synthesize", samples=5, seed=3, image=ImageConfig(size=64)),
        PartConfig(mode="encode", seed=4, image=ImageConfig(size=32)),
    ]
    asked = StreamConfig(name="s", mix=mix, keep=True, seed=1, weight=3).stream()
    assert (asked.name, asked.keep, asked.fresh_noise) == ("s", True, False)
    assert [part.key for part in asked.parts] == ["", "mix.0", "mix.1", "mix.2"]
    assert [part.weight for part in asked.parts] == [3, 2, 1, 1]
    first, shards, drawn, encoded = (part.asked for part in asked.parts)
    assert shards == "data/x"
    assert not any(isinstance(each, str) for each in (first, drawn, encoded))
    facts = [
        (each.mode, each.seed, each.samples, each.image.shape, each.source is None)
        for each in (first, drawn, encoded)
        if not isinstance(each, str)
    ]
    assert facts == [
        ("encode", 1, None, None, False),
        ("synthesize", 3, 5, None, True),
        ("encode", 4, None, (32, 32), False),
    ]
