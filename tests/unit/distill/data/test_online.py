"""Training on features while they are made: the very run that shards give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.configs.mix import FeaturePartConfig, MixConfig
from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.train import train
from dreamshard.errors import ConfigError
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.config import PartConfig, StreamConfig
from pipeline.teachers.base import TeacherConfig
from tests.stream_runs import TIMES, make_offline, results

BUT = (*TIMES, "memory_gb")  # the process grows from run to run


def stream_config(tmp_path: Path, **changes: Any) -> StreamConfig:
    settings: dict = {
        "root": str(tmp_path / "data"),
        "teacher": TeacherConfig(kind="noise", levels=["s4", "s2"], settings={"channels": 4}),
        "image": ImageConfig(size=16),
        "source": SourceConfig(kind="digits"),
        "samples": 64,
        "samples_per_unit": 32,
        "micro_batch": 8,
        "fsync": False,
    }
    return StreamConfig(**(settings | changes))


def train_config(run_dir: Path, data: DataConfig, **changes: Any) -> TrainConfig:
    settings: dict = {
        "run_dir": str(run_dir),
        "steps": 12,
        "batch_size": 8,
        "log_every": 2,
        "save_every": 4,
        "device": "cpu",
        "data": data,
        "student": StudentConfig(
            name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
        ),
        "dreamteacher": DreamTeacherConfig(width=8),
    }
    return TrainConfig(**(settings | changes))


def live(tmp_path: Path, *, shuffle: str = "full", **changes: Any) -> DataConfig:
    stream = stream_config(tmp_path, **changes)
    return DataConfig(kind="live", stream=stream, shuffle=shuffle)  # pyright: ignore


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_live_trains_the_very_student_that_shards_do(tmp_path: Path, codec: str) -> None:
    url = make_offline(stream_config(tmp_path, codec=codec)).url
    train(train_config(tmp_path / "shards", DataConfig(dataset=url)))
    train(train_config(tmp_path / "live", live(tmp_path, codec=codec)))
    assert results(tmp_path / "live", but=BUT) == results(tmp_path / "shards", but=BUT)


def test_a_streamed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    data = live(tmp_path, fresh_noise=True)
    train(train_config(tmp_path / "whole", data))
    short = train_config(tmp_path / "parts", data)
    short.steps = 12
    train_until(short, 8)
    train(short)
    assert results(tmp_path / "parts", but=BUT) == results(tmp_path / "whole", but=BUT)


def train_until(config: TrainConfig, step: int) -> None:
    """Train, and fall over after a checkpoint."""
    from distill.training import runlog

    def fall(self: Any, taken: Any, **_: object) -> None:
        if taken.step > step:
            raise KeyboardInterrupt
        note(self, taken, **_)  # pyright: ignore[reportArgumentType]

    note = runlog.RunLog.note
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.RunLog, "note", fall)
        train(config)


def test_a_run_that_keeps_what_it_streams_ends_the_same(tmp_path: Path) -> None:
    train(train_config(tmp_path / "plain", live(tmp_path, shuffle="block")))
    data = live(tmp_path, shuffle="block", keep=True)
    train(train_config(tmp_path / "kept", data))
    assert results(tmp_path / "kept", but=BUT) == results(tmp_path / "plain", but=BUT)
    (part, *_) = open_training_set(data).source.stream.parts  # pyright: ignore
    assert len(part.keep.committed()) == 2


def test_another_recipe_is_another_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(train_config(run_dir, live(tmp_path), steps=4))
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        train(train_config(run_dir, live(tmp_path, seed=1), steps=4))
    train(train_config(run_dir, live(tmp_path, window=3, patience_s=5.0), steps=4))


def test_mistakes_are_told_at_once_and_by_key(tmp_path: Path) -> None:
    teacher = TeacherConfig(kind="noise", levels=["s4", "s64"])
    mix = [PartConfig(mode="shards", dataset=str(tmp_path / "nothing"))]
    with pytest.raises(ConfigError) as caught:
        open_training_set(live(tmp_path, teacher=teacher, mix=mix))
    text = str(caught.value)
    assert "data.stream.teacher.levels: got s64" in text
    assert f"data.stream.mix.0.dataset: got {tmp_path}/nothing" in text


def test_settings_that_contradict_the_kind_are_refused(tmp_path: Path) -> None:
    data = live(tmp_path, keep=True)
    data.dataset = "data/x"
    assert [problem.key for problem in data.problems()] == ["dataset", "shuffle"]


def test_a_mix_that_standardises_by_the_dataset_says_what_streams_need(tmp_path: Path) -> None:
    mix = MixConfig(feature=FeaturePartConfig(weight=1.0, width=8))
    assert mix.feature.whiten == "channel", "ten seeds had better neighbours so"
    config = train_config(tmp_path / "run", live(tmp_path), method="mix", mix=mix)
    with pytest.raises(ConfigError, match=r"data\.kind: got a stream.*whiten.*to layer_norm"):
        train(config)
