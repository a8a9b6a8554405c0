"""What to do with a teacher that was trained: commands that are whole and work."""

from __future__ import annotations

from pathlib import Path

from dreamshard.config.words import changed_words, command_line
from pipeline.images.source import ImageConfig, SourceConfig

TIMESTEP = 50
"""Little noise: best of those tried with such teachers (README, CIFAR-10)."""
LEVELS = 4
LOOKED_AT = ("auto", "fifths", "folder", "parquet", "webdataset")
"""Kinds of sources that `dreamshard init` takes by their path."""


def next_commands(
    folder: Path, source: SourceConfig, image: ImageConfig, *, depth: int, timesteps: int
) -> list[str]:
    """Spell how to encode the images that a teacher was trained on.

    Args:
        folder: of the teacher.
        source, image: what it was trained on.
        depth: resolutions of the network (count): its strides are 1, 2, 4, ...
        timesteps: of its schedule (count).
    """
    strides = [2**step for step in range(depth)][-LEVELS:]
    levels = f"[{','.join(f's{stride}' for stride in reversed(strides))}]"
    words = ["--teacher.path", str(folder), "--teacher.levels", levels]
    words += ["--teacher.timesteps", f"[{min(TIMESTEP, timesteps - 1)}]"]
    size = ImageConfig(size=image.size, width=image.width)
    words += [*changed_words(source, "source"), *changed_words(size, "image")]
    name = folder.name if folder.name.replace("-", "").replace("_", "").isalnum() else "features"
    commands = [command_line("dreamshard", "encode", "--name", name, *words)]
    square = image.width in (0, image.size)
    if square and source.path and source.kind in LOOKED_AT:
        begin = ["dreamshard", "init", source.path, "--teacher", str(folder)]
        commands.insert(0, command_line(*begin, "--size", str(image.size)))
    return commands
