"""Work out what a request asks for, with all its mistakes at once and nothing heavy loaded."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.rng import RNG_VERSION
from pipeline.images.inputs import ImageInput, Input, LatentInput
from pipeline.images.source import LATENTS, open_source
from pipeline.images.stored import StoredInput, open_stored
from pipeline.request.assume import (
    AssumedImages,
    assumed_spec,
    images_are_missing,
    teacher_is_missing,
)
from pipeline.request.config import AssumeConfig, DatasetRequest
from pipeline.request.layout import choose_codecs
from pipeline.request.plan import (
    Plan,
    bytes_per_sample,
    choose_samples_per_unit,
    make_plan,
)
from pipeline.teachers.base import TeacherSpec
from pipeline.teachers.load import describe_teacher
from storage.fs.open import open_files
from storage.schema import FORMAT_VERSION, Pins, Recipe

ALGORITHM = 1
"""Version of everything between the source's bytes and the stored ones that no other entry of the
recipe names: decoding, resizing, views, the order of rows. A change of bytes raises it."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ResolvedRequest:
    """A request understood: what the main path works with."""

    asked: DatasetRequest
    spec: TeacherSpec
    input: Input
    recipe: Recipe
    wanted: int
    """Samples asked for, before rounding up to whole units."""
    plan: Plan
    pins: Pins
    unwritable: ConfigError | None = None
    """Why nothing can be made at the root; what is there already can be had all the same."""

    def check_writable(self) -> None:
        """Raise ConfigError if nothing can be made at the root."""
        if self.unwritable is not None:
            raise self.unwritable


def resolve(
    asked: DatasetRequest, *, writing: bool = True, assume: AssumeConfig | None = None
) -> ResolvedRequest:
    """Understand a request.

    Args:
        asked: its settings, paths absolute.
        writing: whether to find out if its root is a place to write to; see `check_writable`.
        assume: what may stand in for a teacher or images that are not there; None for nothing.

    Raises:
        ConfigError: everything that is wrong with teacher, source and root, in one go; of the root
            alone, what is returned says it.
        DataError: the source is there, but empty or damaged.
    """
    problems: list[Problem | str] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    source, stored, imagined = None, None, assume is not None and images_are_missing(asked, assume)
    if asked.source is not None and not imagined:
        settings = asked.source
        if settings.kind == LATENTS:
            stored = attempt(lambda: open_stored(settings.path))
        else:
            source = attempt(lambda: open_source(settings))
    spec = attempt(lambda: _spec(asked, assume, stored))
    if spec is not None and stored is not None:
        problems += stored.problems(spec, image=asked.image, seed=asked.seed)
    if spec is not None:
        attempt(lambda: choose_codecs(spec.levels, asked.codec))
    unwritable = _unwritable(asked.root) if writing else None
    if problems or spec is None:
        raise ConfigError([*problems, *(unwritable.problems if unwritable else ())])
    inputs: Input
    if assume is not None and imagined:
        inputs = AssumedImages(assume, image_size=spec.image_size, views=asked.image.views)
    elif stored is not None:
        inputs = stored
    elif source is not None:
        inputs = ImageInput(source, config=asked.image, image_size=spec.image_size, seed=asked.seed)
    else:
        inputs = LatentInput(image_size=spec.image_size, has_labels=spec.has_labels)
    return replace(_resolved(asked, spec, inputs), unwritable=unwritable)


def _unwritable(root: str) -> ConfigError | None:
    try:
        check_root(root)
    except ConfigError as error:
        return error
    return None


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


def _spec(
    asked: DatasetRequest, assume: AssumeConfig | None, stored: StoredInput | None
) -> TeacherSpec:
    if assume is not None and teacher_is_missing(asked, assume):
        return assumed_spec(asked, assume)
    size = asked.image.shape if stored is None else stored.image_size
    return describe_teacher(asked.teacher, mode=asked.mode, image_size=size)


def _resolved(asked: DatasetRequest, spec: TeacherSpec, inputs: Input) -> ResolvedRequest:
    codecs = choose_codecs(spec.levels, asked.codec)
    sizes = bytes_per_sample(
        spec.levels,
        codecs=codecs,
        image_size=spec.image_size,
        has_labels=inputs.has_labels,
        has_masks=inputs.has_masks,
    )
    per_unit = asked.samples_per_unit or choose_samples_per_unit(sum(sizes.values()))
    wanted, available = asked.samples, inputs.num_samples
    if available is not None and (wanted is None or wanted > available):
        if wanted is not None:
            log.warning("samples: got %d, the source has %d: all of them", wanted, available)
        wanted = available
    assert wanted is not None, "checked by SynthesizeConfig"
    return ResolvedRequest(
        asked=asked,
        spec=spec,
        input=inputs,
        recipe=_recipe(asked, spec, inputs, codecs=codecs, samples_per_unit=per_unit),
        wanted=wanted,
        plan=make_plan(
            wanted, available=available, samples_per_unit=per_unit, sizes=sizes, codecs=codecs
        ),
        pins=Pins(
            micro_batch=asked.micro_batch or 1,  # 0: settled before anything runs (fit_batch)
            compute_dtype=asked.teacher.compute_dtype,
            device=asked.device,
            threads=asked.threads,
        ),
    )


def _recipe(
    asked: DatasetRequest,
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
    from_latents = {"latents": inputs.facts()} if isinstance(inputs, StoredInput) else {}
    content: dict[str, object] = {
        "algorithm": ALGORITHM,
        "generator": RNG_VERSION,
        "teacher": spec.fingerprint,
        "mode": {"kind": inputs.mode, **spec.mode_settings, **from_latents},
        "levels": levels,
        "image": inputs.image_rule(),
        "source": inputs.source(),
        "seed": asked.seed,
        "compute_dtype": asked.teacher.compute_dtype,
    }
    layout: dict[str, object] = {
        "format": asked.format,
        "format_version": FORMAT_VERSION,
        "codecs": codecs,
        "samples_per_unit": samples_per_unit,
    }
    return Recipe(asked.name, content, layout)
