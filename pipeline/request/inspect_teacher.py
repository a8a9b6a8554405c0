"""The command `dreamshard inspect teacher PATH`, with images for teachers that look at some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dreamshard.pictures import write_picture
from pipeline.images.inputs import ImageInput
from pipeline.images.labelled import draw_labelled, read_labelled
from pipeline.images.source import ImageConfig, ImageSource, SourceConfig, open_source
from pipeline.request import measure_teacher
from pipeline.teachers.base import Mode, Scalar, Teacher
from pipeline.teachers.door import open_teacher
from pipeline.teachers.inspecting import command
from pipeline.teachers.inspecting.look import MICRO_BATCH
from pipeline.teachers.load import teacher_class
from storage.schema import FeatureBatch

DIGITS = "digits"
"""Stands for scikit-learn's digits where a path is asked for."""


def main(argv: Sequence[str]) -> int:
    """Print a teacher's table of taps and, with `--samples`, what it makes of some; exit code 0.

    Raises:
        ConfigError, TeacherError: as when the teacher is loaded.
    """
    return command.main(argv, encode=encode, read=read, measure=measure)


def read(path: str, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Read images drawn from a source, with their classes where it has them.

    Args:
        path: folder, tar, Parquet file or URL, or "digits".
        count: how many (count), or all where there are no more.
        size: (H, W) in pixels.

    Returns:
        uint8 (N, H, W, 3), and int64 (N,) or None.
    """
    source = _source(path)
    numbers = draw_labelled(len(source), count=count, seed=0)
    labelled = read_labelled(source, config=ImageConfig(), size=size, numbers=numbers)
    known = labelled.labels is not None and bool((labelled.labels >= 0).all())
    return labelled.images, labelled.labels if known else None


def _source(path: str) -> ImageSource:
    told = SourceConfig(kind="digits") if path == DIGITS else SourceConfig(path=path)
    return open_source(told, key="images")


def encode(teacher: Teacher, *, images: str, count: int) -> Iterator[FeatureBatch]:
    """Let a teacher see images, or the digits where none are given."""
    inputs = ImageInput(
        _source(images or DIGITS),
        config=ImageConfig(),
        image_size=teacher.image_size,
        seed=0,
    )
    count = min(count, inputs.num_samples or count)
    for work in inputs.works(0, count, micro_batch=MICRO_BATCH):
        yield inputs.forward(teacher, work)


def measure(
    images: np.ndarray,
    labels: np.ndarray | None,
    path: str,
    *,
    kind: str,
    part: str,
    levels: Sequence[str] | None,
    timesteps: Sequence[int] | None,
    settings: Mapping[str, Scalar],
    image_size: tuple[int, int] | None,
    taps: Sequence[str],
    extractor: str,
) -> tuple[str, Callable[[Path], None] | None]:
    """Measure a teacher on images; return what there is to say, and what writes its sheet."""
    import torch

    def opened(mode: Mode, chosen: Sequence[str] | None) -> Teacher:
        return open_teacher(
            path, kind=kind, part=part, levels=chosen, timesteps=timesteps, mode=mode,
            image_size=image_size, micro_batch=measure_teacher.BATCH, threads=0,
            device="cuda" if torch.cuda.is_available() else "cpu",
            seed=int(settings.get("seed") or 0),
            settings={name: value for name, value in settings.items() if name != "seed"},
        )  # fmt: skip

    measured = measure_teacher.measure(
        opened, images, labels, modes=teacher_class(kind, part=part).modes, levels=levels,
        taps=taps, extractor=extractor,
    )  # fmt: skip
    told = measure_teacher.format_measured(measured, extractor)
    write = partial(write_picture, measured.sheet, key="sheet") if measured.sheet else None
    return told, write
