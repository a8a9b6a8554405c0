"""The command `dreamshard inspect teacher PATH`, with images for teachers that look at some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.images.inputs import ImageInput
from pipeline.images.labelled import draw_labelled, read_labelled
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
    return command.main(argv, encode=encode, read=read)


def read(path: str, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Read images drawn from a source, with their classes where it has them.

    Args:
        path: folder, tar, Parquet file or URL, or "digits".
        count: how many (count), or all where there are no more.
        size: (H, W) in pixels.

    Returns:
        uint8 (N, H, W, 3), and int64 (N,) or None.
    """
    settings = SourceConfig(kind="digits") if path == "digits" else SourceConfig(path=path)
    source = open_source(settings, key="images")
    numbers = draw_labelled(len(source), count=count, seed=0)
    found = read_labelled(source, config=ImageConfig(), size=size, numbers=numbers)
    known = found.labels is not None and bool((found.labels >= 0).all())
    return found.images, found.labels if known else None


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
