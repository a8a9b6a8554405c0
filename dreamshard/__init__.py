"""dreamshard: turn pretrained image generators into training data for image backbones.

The command line is `dreamshard VERB`. In Python, `encode`, `train` and `evaluate` are the commands,
`open_dataset` looks into what was made, `load_teacher` and `load_student` run networks:

    ds = dreamshard.encode("encode.yaml", samples=1000)
    print(len(ds), ds[0].key, ds[0].levels["s4"].shape)
    for batch in ds.torch(batch_size=64, levels=["s4"]):
        loss = (net(batch.images) - batch.levels["s4"]).square().mean()
    run = dreamshard.train("train.yaml", **{"data.dataset": ds.url, "steps": 500})
    print(dreamshard.evaluate("evaluate.yaml", student=run.folder)["knn"])

Each imports what it needs only when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from dreamshard.versions import VERSION as __version__

if TYPE_CHECKING:
    from distill.students.student import Student
    from dreamshard.console.api.calls import TrainRun
    from dreamshard.console.api.dataset import FeatureDataset
    from pipeline.teachers.base import Scalar, Teacher

__all__ = [
    "__version__",
    "encode",
    "evaluate",
    "load_student",
    "load_teacher",
    "open_dataset",
    "train",
]


def open_dataset(url: str | PathLike[str]) -> FeatureDataset:
    """Open a feature dataset; needs neither torch nor Ray.

    Its length, `ds[number]`, `ds["key"]`, `ds[10:20]` and iteration give samples, `ds.read("s4")`
    an array, `ds.torch(batch_size=...)` batches for a loop of one's own.

    Args:
        url: the dataset's folder, local or any URL that fsspec knows, or ROOT/NAME for the one of
            that name under ROOT, as the commands take it.

    Raises:
        DataError: there is no dataset, there are several, or it was written in a newer format.
    """
    from dreamshard.console.shadow import check_packages

    check_packages()
    from dreamshard.console.api.dataset import open_features

    return open_features(str(url))


def encode(
    recipe: str | PathLike[str] | Mapping[str, Any] | None = None, **settings: Any
) -> FeatureDataset:
    """Record a teacher's features of images, or find them recorded: `dreamshard encode`.

    Args:
        recipe: a YAML file, or its settings as a dict.
        settings: settings laid over it, nested (`teacher={"path": ...}`) or by dotted key
            (`**{"teacher.path": ...}`); `dreamshard encode --help all` lists them.

    Returns:
        The dataset, open.

    Raises:
        ConfigError: settings that are wrong, all at once.
        DataError: images that cannot be read, units that could not be made.
        TeacherError: a teacher that cannot be loaded or run.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from dreamshard.console.shadow import check_packages

    check_packages()
    from dreamshard.console.api import calls

    return calls.encode(recipe, settings)


def train(
    recipe: str | PathLike[str] | Mapping[str, Any] | None = None, **settings: Any
) -> TrainRun:
    """Distil recorded features into a student, or go on doing so: `dreamshard train`.

    Args:
        recipe: a YAML file, or its settings as a dict.
        settings: laid over it, as for `encode`; `dreamshard train --help all` lists them.

    Returns:
        The run: `folder`, `student` (a timm model folder), `load()`, `metrics`.

    Raises:
        ConfigError: settings that are wrong or do not fit the dataset, all at once.
        DataError: a dataset or checkpoint that cannot be read, features that are not finite.
        Interrupted: Ctrl-C; a checkpoint was saved, the same call goes on.
    """
    from dreamshard.console.shadow import check_packages

    check_packages()
    from dreamshard.console.api import calls

    return calls.train(recipe, settings)


def evaluate(
    recipe: str | PathLike[str] | Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Measure what a student has learned: `dreamshard evaluate`.

    Args:
        recipe: a YAML file, or its settings as a dict.
        settings: laid over it, as for `encode`; `dreamshard evaluate --help all` lists them.

    Returns:
        What results.json holds: per task its result, "student", "levels", "images".

    Raises:
        ConfigError: settings that are wrong, or images it cannot be judged on.
        DataError: no trained student, or images that cannot be read.
    """
    from dreamshard.console.shadow import check_packages

    check_packages()
    from dreamshard.console.api import calls

    return calls.evaluate(recipe, settings)


def load_student(path: str | PathLike[str]) -> Student:
    """Load a trained student, in evaluation mode.

    Args:
        path: of its folder, or of the run folder that holds it.

    Returns:
        A torch module that maps images (B, 3, H, W), normalised with its `mean` and `std`, to one
        map per stride of its `strides`, finest first; `pooled(images)` gives (B, C).

    Raises:
        ConfigError: a URL.
        DataError: no student there, or weights that do not fit its description.
    """
    from dreamshard.console.shadow import check_packages

    check_packages()
    from dreamshard.console.api import calls

    return calls.load_student(str(path))


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
    from dreamshard.console.shadow import check_packages

    check_packages()
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
