"""dreamshard: turn pretrained image generators into training data for image backbones.

The command line is `dreamshard VERB`; in Python, `open_dataset` reads what was made and
`load_teacher` runs a network. Both import what they need only when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dreamshard.versions import VERSION as __version__

if TYPE_CHECKING:
    from pipeline.teachers.base import Scalar, Teacher
    from storage.dataset import Dataset

__all__ = ["__version__", "load_teacher", "open_dataset"]


def open_dataset(url: str) -> Dataset:
    """Open a feature dataset; needs neither torch nor Ray.

    Args:
        url: the dataset's folder, local or any URL that fsspec knows.

    Raises:
        DataError: there is no dataset, or it was written in a newer format.
    """
    from storage.dataset import Dataset

    return Dataset.open(url)


def load_teacher(
    path: str,
    *,
    kind: str = "diffusers",
    levels: Sequence[str] | None = None,
    timesteps: Sequence[int] | None = None,
    mode: Literal["encode", "synthesize"] | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    micro_batch: int = 16,
    device: str = "cpu",
    **settings: Scalar,
) -> Teacher:
    """Load a teacher, ready to encode or synthesize micro-batches.

    Args:
        path: folder, file or URL of the weights.
        kind: teacher family, or `module:Class` of your own.
        levels: levels to record, names or strides (`s4`); None for the family's default.
        timesteps: diffusion steps at which to record; None for 150 where the family has them.
        mode: what the teacher will be asked for; None for encode, or the one thing it can do.
        image_size: side, or height and width, in pixels; None for the network's own.
        seed: decides the noise and the latents, together with a sample's index.
        micro_batch: images per call, 1 or more; every call takes exactly as many.
        device: "cpu" or "cuda".
        settings: the family's own settings, in the official code's flag names where the weights do
            not tell.

    Raises:
        ConfigError: a level, timestep or setting that the teacher does not have.
        TeacherError: the weights are missing, damaged or do not fit the architecture.
    """
    from pipeline.teachers.door import open_teacher

    return open_teacher(
        path,
        kind=kind,
        levels=levels,
        timesteps=timesteps,
        mode=mode,
        image_size=image_size,
        seed=seed,
        micro_batch=micro_batch,
        device=device,
        **settings,  # pyright: ignore[reportArgumentType]
    )
