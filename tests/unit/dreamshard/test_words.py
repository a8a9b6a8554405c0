"""Commands that are proposed: whole, quoted, and read back to the same settings."""

from __future__ import annotations

import shlex
from pathlib import Path

from dreamshard.config import load_config
from dreamshard.config.words import changed_words, command_line
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining.following import next_commands
from pipeline.request.config import EncodeConfig
from pipeline.teachers.base import TeacherConfig


def test_what_differs_from_the_defaults_is_spelled() -> None:
    teacher = TeacherConfig(
        path="my teacher",
        levels=["s4", "s2"],
        timesteps=[50],
        settings={"class_label": 3, "b": "x"},
    )
    source = SourceConfig(path="it's mine", class_folders=True)
    words = [*changed_words(teacher, "teacher"), *changed_words(source, "source")]
    line = command_line("dreamshard", "encode", *words)
    assert "--teacher.levels [s4,s2]" in line and "'my teacher'" in line
    config = load_config(EncodeConfig, shlex.split(line)[2:], prog="x", description="")
    assert (config.teacher, config.source) == (teacher, source)
    assert changed_words(SourceConfig(), "source") == []


def test_lists_that_a_shell_would_expand_are_quoted() -> None:
    assert command_line("a", "[x,y]") == "a [x,y]"
    assert shlex.split(command_line("a", "[x y,*]")) == ["a", "[x y,*]"]


def test_a_trained_teacher_s_next_commands_are_whole() -> None:
    source = SourceConfig(path="my photos")
    image = ImageConfig(size=64, flip="random", views=2)
    told = next_commands(Path("t/mine"), source, image, depth=5, timesteps=1000)
    assert told[0] == "dreamshard init 'my photos' --teacher t/mine --size 64"
    config = load_config(EncodeConfig, shlex.split(told[1])[2:], prog="x", description="")
    assert config.teacher.levels == ["s16", "s8", "s4", "s2"] and config.teacher.timesteps == [50]
    assert (
        config.source == source and config.image == ImageConfig(size=64) and config.name == "mine"
    )
    (only,) = next_commands(
        Path("t"), SourceConfig(kind="digits"), ImageConfig(size=16), depth=3, timesteps=20
    )
    config = load_config(EncodeConfig, shlex.split(only)[2:], prog="x", description="")
    assert config.teacher.timesteps == [19] and config.teacher.levels == ["s4", "s2", "s1"]
