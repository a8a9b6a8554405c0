"""Find what a run trains on, choose its levels, and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill.data.paired import cropped, pair_problems
from distill.data.sets import Needs, TrainingSet, is_usable
from distill.data.shards import ShardSource, open_real
from distill.data.source import Source
from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem
from storage.level_names import choose_levels, match_levels, unknown_level
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.train import DataConfig

SOURCES = {
    "shards": "distill.data.shards:open_shards",
    "stream": "distill.data.online:open_stream",
    "live": "distill.data.online:open_stream",
}
"""What opens a `Source`, by `data.kind`."""
KIND_WORDS = {"feature": "map", "soft_label": "soft label", "embedding": "embedding"}
KIND_HINTS = {
    "feature": "Choose a dataset with feature maps.",
    "embedding": "Record vectors (`dreamshard encode --teacher.pool gap`), or maps, which are "
    "averaged over space.",
    "soft_label": "Record them with `dreamshard encode --teacher.interpreter FOLDER`, into a "
    "dataset of their own if you like, and name it in data.join.",
}


def open_training_set(
    config: DataConfig,
    *,
    needs: Needs | None = None,
    seed: int = 0,
    settle: Callable[[TrainingSet], object] | None = None,
) -> TrainingSet:
    """Find the dataset at its latest version, choose the levels, and refuse what does not fit.

    Args:
        config: which dataset and levels, which datasets join it, and what is expected of them.
        needs: of the method; None: feature maps alone.
        seed: of the run.
        settle: refuses a set that does not fit what is made of it; where kinds of levels, labels
            or real images are missing, what it refuses is told with them.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one; a stream's source
            that is empty or damaged.
        ConfigError: levels it has not, or of another kind; no labels; another size or pixel range;
            datasets that are not of the same samples; flips or crops that its levels do not allow.
    """
    needs = needs or Needs()
    source: Source = load_part(config.kind, table=SOURCES)(config)
    levels, problems = [], []
    if needs.kinds:
        levels, problems = _choose_levels(config, source, kinds=needs.kinds)
    problems = [*_image_problems(config, source), *problems]
    problems += pair_problems(config, source=source, levels=levels)
    if needs.labels and not source.labelled:
        allowed = "a dataset with labels, as the method learns classes"
        problems.append(Problem("data.dataset", source.url, allowed))
    if config.real and not needs.real:
        allowed = "nothing, as no objective of this run learns from real images"
        problems.append(Problem("data.real", config.real, allowed, "Leave it out."))
    if needs.real and not config.real:
        allowed = "a dataset of real images, which the method learns from beside the samples"
        hint = "Name one that `dreamshard encode` wrote: --data.real ROOT/NAME."
        problems.append(Problem("data.real", "nothing", allowed, hint))
    lacking = {problem.key for problem in problems} <= {"data.dataset", "data.real"}
    if problems and not (settle and lacking):
        raise ConfigError(problems)
    crop = (config.crop[0], config.crop[1]) if config.crop else None
    real = _open_real(config, source) if needs.real and not problems else None
    training_set = TrainingSet(
        source=source,
        levels=tuple(cropped(level, crop) for level in levels),
        needs=needs,
        crop=crop,
        mirror=config.flip == "mirror",
        seed=seed,
        real=real,
    )
    if problems and settle:
        raise ConfigError([*problems, *_refused(settle, training_set)])
    if needs.labels:
        training_set.check_labels()
    return training_set


def _refused(
    settle: Callable[[TrainingSet], object], training_set: TrainingSet
) -> Sequence[Problem | str]:
    try:
        settle(training_set)
    except ConfigError as error:
        return error.problems
    return ()


def _choose_levels(
    config: DataConfig, source: Source, *, kinds: Sequence[str]
) -> tuple[list[Level], list[Problem]]:
    """Return the levels asked for, finest first, and what is wrong with the request."""
    usable = [level for level in source.levels if is_usable(level, kinds)]
    words = " or ".join(KIND_WORDS[kind] for kind in kinds)
    chosen, problems = _usual(usable, kinds=kinds), []
    if config.levels:
        chosen, _ = choose_levels(usable, config.levels, key="data.levels")
        problems = [
            _level_problem(name, source.levels, usable, words)
            for name in config.levels
            if not match_levels(usable, name)
        ]
    for kind in kinds:
        if not problems and not any(is_usable(level, [kind]) for level in chosen):
            allowed = f"at least one {KIND_WORDS[kind]}"
            problems.append(Problem("data.dataset", source.url, allowed, KIND_HINTS[kind]))
    return sorted(chosen, key=lambda level: level.stride), problems


def _level_problem(
    name: str, levels: Sequence[Level], usable: Sequence[Level], words: str
) -> Problem:
    """Say why a name stands for no level that can be distilled."""
    if not usable:
        allowed = f"none: this dataset has no {words}s"
        return Problem("data.levels", repr(name), allowed)
    problem = unknown_level(usable, name, key="data.levels")
    if match_levels(levels, name):
        return replace(problem, got=f"{name!r} (not a {words})")
    return problem


def _open_real(config: DataConfig, source: Source) -> ShardSource:
    """Find the real images, and refuse those that cannot lie beside the samples."""
    real = open_real(config)
    if real.image_size != source.image_size or config.crop:
        got = f"images of {real.image_size}" + (" and a crop (data.crop)" if config.crop else "")
        allowed = f"whole images of {source.image_size}, as the samples of {source.url}"
        raise ConfigError(Problem("data.real", got, allowed))
    return real


def _usual(usable: Sequence[Level], *, kinds: Sequence[str]) -> list[Level]:
    """Return the levels that are read where none are named: maps give way to vectors wanted."""
    vectors = any(level.is_vector for level in usable)
    if "embedding" not in kinds or "feature" in kinds or not vectors:
        return list(usable)
    return [level for level in usable if not level.is_map]


def _image_problems(config: DataConfig, source: Source) -> list[Problem]:
    problems = []
    size = list(source.image_size)
    hint = "Choose another dataset, or change what the recipe expects."
    if config.image_size and config.image_size != size:
        allowed = f"{size}, the size of {source.url}"
        problems.append(Problem("data.image_size", str(config.image_size), allowed, hint))
    image = source.recipe.content.get("image")
    recorded = str(image.get("range", "")) if isinstance(image, dict) else ""
    if config.pixel_range and config.pixel_range != recorded:
        allowed = f"{recorded!r}, the pixel range of {source.url}"
        problems.append(Problem("data.pixel_range", repr(config.pixel_range), allowed, hint))
    return problems
