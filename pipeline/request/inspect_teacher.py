"""The command `dreamshard inspect teacher PATH`, with images for teachers that look at some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.images.inputs import ImageInput
from pipeline.images.source import ImageConfig, SourceConfig, open_source
from pipeline.teachers.base import Teacher
from pipeline.teachers.inspecting import command
from pipeline.teachers.inspecting.look import MICRO_BATCH
from storage.schema import FeatureBatch


def main(argv: Sequence[str]) -> int:
    """Print a teacher's table of taps and, with `--samples`, what it makes of some; exit code 0.

    Raises:
        ConfigError, TeacherError: as when the teacher is loaded.
    """
    return command.main(argv, encode=encode)


def encode(teacher: Teacher, *, images: str, count: int) -> Iterator[FeatureBatch]:
    """Let a teacher see images, or the digits where none are given."""
    settings = SourceConfig(path=images) if images else SourceConfig(kind="digits")
    inputs = ImageInput(
        open_source(settings, key="images"),
        config=ImageConfig(),
        image_size=teacher.image_size,
        seed=0,
    )
    count = min(count, inputs.num_samples or count)
    for work in inputs.works(0, count, micro_batch=MICRO_BATCH):
        yield inputs.forward(teacher, work)
