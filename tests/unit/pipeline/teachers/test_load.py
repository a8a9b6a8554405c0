"""What is told of a teacher before any family looks at its files."""

from __future__ import annotations

from typing import Any

import pytest

from dreamshard.errors import ConfigError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import PARTS, WITH_WEIGHTS, describe_teacher

CASES = [(kind, "") for kind in sorted(WITH_WEIGHTS)]
CASES += [(kind, part) for kind, parts in PARTS.items() for part in parts]


@pytest.mark.parametrize(("kind", "part"), CASES)
def test_a_teacher_without_a_path_is_not_looked_for_in_the_working_directory(
    kind: str, part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    encoders = ("diffusers", "encoder", "timm", "student")
    mode: Any = "encode" if part or kind in encoders else "synthesize"
    config = TeacherConfig(kind=kind, part=part, levels=["s4"])
    with pytest.raises(ConfigError, match=f"teacher.path: got nothing.*a {kind} teacher's weights"):
        describe_teacher(config, mode=mode)


def test_noise_needs_none() -> None:
    config = TeacherConfig(kind="noise", levels=["s4"], timesteps=[0])
    assert describe_teacher(config, mode="synthesize").levels[0].stride == 4
