"""What may be asked of a diffusion teacher: settings, checks, and the levels they lead to.

Nothing here loads weights or imports torch, so every mistake is found before anything is spent.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Mode, Scalar, TeacherConfig
from pipeline.teachers.diffusion import sampling
from pipeline.teachers.diffusion.families import find_family
from pipeline.teachers.diffusion.networks.description import Description
from pipeline.teachers.recording import taps
from pipeline.teachers.request import check_settings, expand_levels, level_name
from storage.schema import Level

SETTINGS: dict[str, Scalar] = {
    "encoding": "stochastic",
    "inversion_steps": 25,
    "mean_draws": 1,
    "class_label": None,
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.0,
    "record": "reencode",
    "memory_format": "auto",
    "compile": False,
}
"""Settings of every diffusion teacher with their defaults; families add their own."""
CHOICES = {
    "encoding": ("stochastic", "inversion"),
    "sampler": ("ddim", "dpm"),
    "record": ("reencode", "steps"),
    "memory_format": ("auto", "channels_last", "contiguous"),
}
NO_CLASS = -1
LOWEST = {"inversion_steps": 1, "mean_draws": 1, "steps": 1, "eta": 0}


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked request: what the network is, what to record, and how."""

    description: Description
    levels: tuple[Level, ...]
    settings: dict[str, Scalar]
    timesteps: tuple[int, ...]
    draws: int

    def number(self, name: str) -> int:
        """Return a whole-number setting."""
        return int(cast(int, self.settings[name]))

    def sampler_timesteps(self) -> list[int]:
        """Return the sampler's timesteps, ascending."""
        schedule = self.description.schedule
        if schedule.prediction in ("flow_prediction", "edm"):
            share = np.linspace(0, 1, self.number("steps") + 1)[1:]
            if schedule.prediction == "flow_prediction":  # lean towards noise, as its sampler does
                share = schedule.shift * share / (1 + (schedule.shift - 1) * share)
            return sorted({round(float(value) * (len(schedule) - 1)) for value in share})
        return sampling.leading_timesteps(len(schedule), self.number("steps"), schedule.offset)

    def inversion_timesteps(self) -> list[int]:
        """Return the inversion's grid, ascending: evenly spaced, with every recorded step in it."""
        highest = max(self.timesteps)
        total = len(self.description.schedule)
        even = sampling.leading_timesteps(total, self.number("inversion_steps"))
        return sorted({step for step in even if step < highest} | set(self.timesteps))


def resolve(config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None) -> Request:
    """Check a request against what the path holds, reading small files only.

    Raises: ConfigError with every problem found; TeacherError if the path's files are unusable.
    """
    family, path = find_family(Path(config.path))
    settings, found = check_settings(config, {**SETTINGS, **family.SETTINGS})
    problems: list[Problem | str] = [*found, *_setting_problems(settings)]
    try:
        description = family.describe(path, settings, image_size)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    problems += _class_problems(settings, description, mode)
    if settings["memory_format"] == "auto":
        exact = description.exact and config.compute_dtype == "float32"
        settings["memory_format"] = "contiguous" if exact else "channels_last"
    try:
        levels = expand_levels(
            config,
            taps=taps.table(description.taps, description.image_size),
            aliases=description.aliases,
            num_timesteps=len(description.schedule),
        )
    except ConfigError as error:
        problems += [_stride_hint(problem, description) for problem in error.problems]
        levels = ()
    request = Request(description, levels, settings, tuple(sorted(config.timesteps)), config.draws)
    problems += _way_problems(request, mode)
    if problems:
        raise ConfigError(problems)
    if request.number("mean_draws") > 1:
        levels = tuple(_mean_name(level, request.number("mean_draws")) for level in levels)
        request = dataclasses.replace(request, levels=levels)
    return request


def fingerprint(description: Description) -> dict[str, object]:
    """Return what identifies a teacher."""
    return weights.identity(description.family, description.weights, description.architecture)


def mode_settings(request: Request, mode: Mode) -> dict[str, object]:
    """Return the settings that change recorded bytes in this mode, defaults filled in."""
    names = ["encoding", "memory_format"]
    if request.settings["encoding"] == "inversion":
        names.append("inversion_steps")
    else:
        names.append("mean_draws")
    if request.description.classes:
        names.append("class_label")
    if mode == "synthesize":
        names += ["sampler", "steps", "eta", "record"]
    if request.settings["compile"]:  # other kernels, other last digits
        names.append("compile")
    return {name: request.settings[name] for name in names}


def _setting_problems(settings: dict[str, Scalar]) -> list[Problem]:
    found = []
    for name, allowed in CHOICES.items():
        if settings[name] not in allowed:
            found.append(Problem(f"settings.{name}", str(settings[name]), " | ".join(allowed)))
    for name, least in LOWEST.items():
        value = settings[name]
        if isinstance(value, int | float) and value < least:
            found.append(Problem(f"settings.{name}", str(value), f"at least {least}"))
    return found


def _class_problems(
    settings: dict[str, Scalar], description: Description, mode: Mode
) -> list[Problem]:
    label, classes = settings["class_label"], description.classes
    if not classes:
        return [] if label is None else [_class_problem(label, "none: it has no classes")]
    if label is None and mode == "encode" and description.null_class is not None:
        settings["class_label"] = NO_CLASS
    elif label is None and mode == "encode":
        return [_class_problem("nothing", f"0..{classes - 1}, or {NO_CLASS} to leave it out")]
    elif label is not None and not (type(label) is int and NO_CLASS <= label < classes):
        return [_class_problem(label, f"0..{classes - 1}, or {NO_CLASS} to leave it out")]
    return []


def _class_problem(got: object, allowed: str) -> Problem:
    hint = "A class-conditional network needs a label; encode gives every image the same."
    return Problem("settings.class_label", str(got), allowed, hint)


def _way_problems(request: Request, mode: Mode) -> list[Problem]:
    """Find what contradicts itself in how timesteps are reached."""
    total = len(request.description.schedule)
    if not request.timesteps:
        return [Problem("timesteps", "[]", f"0..{total - 1}", "Try --teacher.timesteps [50].")]
    found = []
    deterministic = request.settings["encoding"] == "inversion"
    on_the_way = mode == "synthesize" and request.settings["record"] == "steps"
    if deterministic or on_the_way:
        why = "inversion has no noise to draw" if deterministic else "a sample is drawn once"
        for name, value in (
            ("draws", request.draws),
            ("settings.mean_draws", request.settings["mean_draws"]),
        ):
            if value != 1:
                found.append(Problem(name, str(value), f"1 ({why})"))
    used = {"steps": mode == "synthesize", "inversion_steps": deterministic}
    for name in used:
        if used[name] and request.number(name) > total:
            found.append(Problem(f"settings.{name}", str(request.number(name)), f"1..{total}"))
    if on_the_way and not found:
        grid = request.sampler_timesteps()
        missing = [step for step in request.timesteps if step not in grid]
        if missing:
            shown = ", ".join(map(str, grid))
            found.append(Problem("timesteps", str(missing), f"steps of the sampler: {shown}"))
    return found


def _stride_hint(problem: Problem | str, description: Description) -> Problem | str:
    """Say what to do about a stride that the network has no map of."""
    strides = [tap.stride for tap in description.taps]
    if isinstance(problem, str) or not re.fullmatch(r"s\d+", problem.got):
        return problem
    hint = f"This network has strides {min(strides)} to {max(strides)}."
    if description.latent:
        hint += " A latent model has no finer map: a larger image gives more cells."
    return dataclasses.replace(problem, hint=hint)


def _mean_name(level: Level, mean: int) -> Level:
    """Spell a level that is a mean over noise draws: `up.1.t100.m8`."""
    base = level_name(level.tap, timestep=level.timestep, draw=level.draw)
    name = f"{base}.m{mean}" + ("" if level.pool == "none" else f".{level.pool}")
    return dataclasses.replace(level, name=name)
