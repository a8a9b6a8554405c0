"""Small streams of the noise teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.config import StreamConfig
from pipeline.teachers.base import TeacherConfig

Configure = Callable[..., StreamConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Return a function that makes the configuration of a small stream, with changes."""

    def make(**changes: object) -> StreamConfig:
        settings: dict = {
            "root": str(tmp_path / "data"),
            "teacher": TeacherConfig(kind="noise", levels=["s4", "s8"], settings={"channels": 4}),
            "image": ImageConfig(size=16),
            "source": SourceConfig(kind="digits"),
            "samples": 96,
            "samples_per_unit": 32,
            "micro_batch": 8,
            "fsync": False,
        }
        return StreamConfig(**(settings | changes))

    return make
