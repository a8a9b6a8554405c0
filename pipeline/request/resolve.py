"""Work out what a config asks for, with all its mistakes at once and nothing heavy loaded."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.rng import RNG_VERSION
from pipeline.images.inputs import ImageInput, Input, LatentInput
from pipeline.images.source import open_source
from pipeline.request.assume import (
    assumed_images,
    assumed_spec,
    images_are_missing,
    teacher_is_missing,
)
from pipeline.request.config import EncodeConfig, PipelineConfig
from pipeline.request.layout import choose_codecs
from pipeline.request.plan import (
    Plan,
    bytes_per_sample,
    choose_samples_per_unit,
    make_plan,
)
from pipeline.teachers.base import Mode, TeacherSpec
from pipeline.teachers.load import describe_teacher
from storage.fs.open import open_files
from storage.schema import FORMAT_VERSION, Pins, Recipe

ALGORITHM = 1
"""Version of everything between the source's bytes and the stored ones that no other entry of the
recipe names: decoding, resizing, views, the order of rows. A change of bytes raises it."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A config understood: what the main path works with."""

    spec: TeacherSpec
    input: Input
    recipe: Recipe
    wanted: int
    """Samples asked for, before rounding up to whole units."""
    plan: Plan
    pins: Pins


def resolve(config: PipelineConfig, *, writing: bool = True, assuming: bool = False) -> Request:
    """Understand a config.

    Args:
        config: an EncodeConfig or a SynthesizeConfig.
        writing: whether its root must be a place to write to.
        assuming: whether `assume` may stand in for a teacher or images that are not there.

    Raises:
        ConfigError: everything that is wrong with teacher, source and root, in one go.
        DataError: the source is there, but empty or damaged.
    """
    problems: list[Problem | str] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    describe = assumed_spec if assuming and teacher_is_missing(config) else _describe
    spec = attempt(lambda: describe(config))
    source, imagined = None, assuming and images_are_missing(config)
    if isinstance(config, EncodeConfig) and not imagined:
        source = attempt(lambda: open_source(config.source))
    if spec is not None:
        attempt(lambda: choose_codecs(spec.levels, config.codec))
    if writing:
        attempt(lambda: check_root(config.root))
    if problems or spec is None:
        raise ConfigError(problems)
    inputs: Input
    if isinstance(config, EncodeConfig) and imagined:
        inputs = assumed_images(config)
    elif isinstance(config, EncodeConfig):
        assert source is not None
        inputs = ImageInput(
            source, config=config.image, image_size=spec.image_size, seed=config.seed
        )
    else:
        inputs = LatentInput(image_size=spec.image_size, has_labels=spec.has_labels)
    return _request(config, spec, inputs)


def mode_of(config: PipelineConfig) -> Mode:
    """Tell encode from synthesize."""
    return "encode" if isinstance(config, EncodeConfig) else "synthesize"


def check_root(root: str) -> None:
    """Find out whether datasets can be written below `root`; make it if it is a missing folder.

    Raises:
        ConfigError: if not.
    """
    hint = "Try --root with a folder of your own."
    try:
        files = open_files(root)
        if files.remote:  # one write tells credentials, bucket and network
            files.now()
            return
        path = Path(files.url)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except DataError as error:
        raise ConfigError(
            Problem("root", str(error), "a folder that can be written", hint)
        ) from error
    except OSError as error:
        got = f"{root} ({error.strerror or error})"
        raise ConfigError(Problem("root", got, "a folder that can be written", hint)) from error


def _describe(config: PipelineConfig) -> TeacherSpec:
    shape = config.image.shape if isinstance(config, EncodeConfig) else None
    return describe_teacher(config.teacher, mode=mode_of(config), image_size=shape)


def _request(config: PipelineConfig, spec: TeacherSpec, inputs: Input) -> Request:
    codecs = choose_codecs(spec.levels, config.codec)
    sizes = bytes_per_sample(
        spec.levels,
        codecs=codecs,
        image_size=spec.image_size,
        has_labels=inputs.has_labels,
        has_masks=inputs.has_masks,
    )
    per_unit = config.samples_per_unit or choose_samples_per_unit(sum(sizes.values()))
    wanted, available = config.samples, inputs.num_samples
    if available is not None and (wanted is None or wanted > available):
        if wanted is not None:
            log.warning("samples: got %d, the source has %d: all of them", wanted, available)
        wanted = available
    assert wanted is not None, "checked by SynthesizeConfig"
    return Request(
        spec=spec,
        input=inputs,
        recipe=_recipe(config, spec, inputs, codecs=codecs, samples_per_unit=per_unit),
        wanted=wanted,
        plan=make_plan(
            wanted, available=available, samples_per_unit=per_unit, sizes=sizes, codecs=codecs
        ),
        pins=Pins(
            micro_batch=config.micro_batch or 1,  # 0: settled before anything runs (fit_batch)
            compute_dtype=config.teacher.compute_dtype,
            device=_device(config),
            threads=config.threads_per_actor,
        ),
    )


def _recipe(
    config: PipelineConfig,
    spec: TeacherSpec,
    inputs: Input,
    *,
    codecs: dict[str, str],
    samples_per_unit: int,
) -> Recipe:
    """Write down everything that decides the bytes."""
    levels: list[object] = [
        {
            "name": level.name,
            "tap": level.tap,
            "timestep": level.timestep,
            "draw": level.draw,
            "pool": level.pool,
            **spec.level_facts.get(level.name, {}),
        }
        for level in spec.levels
    ]
    content: dict[str, object] = {
        "algorithm": ALGORITHM,
        "generator": RNG_VERSION,
        "teacher": spec.fingerprint,
        "mode": {"kind": inputs.mode, **spec.mode_settings},
        "levels": levels,
        "image": inputs.image_rule(),
        "source": inputs.source(),
        "seed": config.seed,
        "compute_dtype": config.teacher.compute_dtype,
    }
    layout: dict[str, object] = {
        "format": config.format,
        "format_version": FORMAT_VERSION,
        "codecs": codecs,
        "samples_per_unit": samples_per_unit,
    }
    return Recipe(config.name, content, layout)


def _device(config: PipelineConfig) -> str:
    if config.device == "auto":
        return "cuda" if config.gpus_per_actor > 0 else "cpu"
    return config.device
