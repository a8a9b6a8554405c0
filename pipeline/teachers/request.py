"""Turn a request (`TeacherConfig`) into levels and settings; shared by the families."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from dreamshard.errors import Problem
from pipeline.teachers.base import Scalar, TeacherConfig
from storage.schema import Level

NO_TIMESTEP = -1
"""`Level.timestep` of families that have none."""


class Recordable(NamedTuple):
    """Say what a tap records.

    Args:
        shape: per sample, (C, H, W) of a map.
        stride: image pixels per cell, 0 for what is no map.
        kind: feature, embedding (a pooled vector) or latent (what an image is made from); empty:
            a feature where it is a map, else an embedding.
        dtype: float16, or float32 for latents that must be read back exactly.
        once: whether it is the same at every timestep and draw, and so is recorded once.
    """

    shape: tuple[int, ...]
    stride: int
    kind: str = ""
    dtype: str = "float16"
    once: bool = False


def level_name(
    tap: str, *, timestep: int = NO_TIMESTEP, draw: int = 0, mean: int = 1, pool: str = "none"
) -> str:
    """Spell a level's name from what it is: `up.1`, `up.1.t100`, `up.1.t100.d1.m8.gap`.

    Args:
        mean: noise draws that it is the mean of (count).
    """
    name = tap if timestep == NO_TIMESTEP else f"{tap}.t{timestep}"
    name += (f".d{draw}" if draw else "") + (f".m{mean}" if mean > 1 else "")
    return name if pool == "none" else f"{name}.{pool}"


def expand_levels(
    config: TeacherConfig,
    *,
    taps: Mapping[str, Recordable],
    aliases: Mapping[str, str],
    num_timesteps: int | None,
) -> tuple[tuple[Level, ...], list[Problem]]:
    """Turn the request (levels x timesteps x draws) into levels; shared by the teachers.

    Args:
        config: the request.
        taps: tap name -> what it records.
        aliases: further names -> tap name (`s8` -> `up.1`).
        num_timesteps: diffusion steps of the model; None for a family without timesteps.

    Returns:
        the levels, and what is wrong: unknown or twice-requested levels (listing what exists),
        timesteps out of range, timesteps where the family has none. With problems, no levels.
    """
    problems = _timestep_problems(config, num_timesteps)
    chosen: list[str] = []
    for name in config.levels:
        tap = name if name in taps else aliases.get(name, "")
        if tap not in taps:
            exists = ", ".join(taps) + (f"; aliases {', '.join(aliases)}" if aliases else "")
            close = difflib.get_close_matches(name, [*taps, *aliases], n=1)
            hint = f"Did you mean {close[0]}?" if close else ""
            problems.append(Problem("levels", name, exists, hint))
        elif tap in chosen:
            problems.append(Problem("levels", f"{tap} twice", "every level once"))
        else:
            chosen.append(tap)
    if problems:
        return (), problems
    levels = []
    for tap in chosen:
        shape, stride, kind, dtype, once = taps[tap]
        kind = kind or ("feature" if len(shape) == 3 else "embedding")
        pool = config.pool if len(shape) == 3 and kind == "feature" else "none"
        for timestep in [NO_TIMESTEP] if once else config.timesteps or [NO_TIMESTEP]:
            for draw in range(1 if once else config.draws):
                levels.append(
                    Level(
                        name=level_name(tap, timestep=timestep, draw=draw, pool=pool),
                        kind=kind,
                        tap=tap,
                        timestep=timestep,
                        draw=draw,
                        pool=pool,
                        stride=stride,
                        shape=shape[:1] if pool == "gap" else shape,
                        dtype=dtype,
                    )
                )
    return tuple(levels), []


def drawn_once(config: TeacherConfig) -> list[Problem]:
    """Refuse several noise draws for a family that has no noise to draw."""
    if config.draws == 1:
        return []
    return [Problem("draws", str(config.draws), "1 (nothing is drawn anew for a sample)")]


def check_settings(
    config: TeacherConfig,
    defaults: Mapping[str, Scalar],
    *,
    choices: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    lowest: Mapping[str, float] = MappingProxyType({}),
) -> tuple[dict[str, Scalar], list[Problem]]:
    """Fill `config.settings` up with a family's defaults.

    Args:
        config: the request.
        defaults: every setting the family knows.
        choices: setting -> the words it may be.
        lowest: setting -> the least it may be.

    Returns:
        all settings, and what is wrong: unknown names, wrong types, values not allowed.
    """
    problems = []
    for name, value in config.settings.items():
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"Did you mean {close[0]}?" if close else ""
            problems.append(Problem(f"settings.{name}", str(value), ", ".join(defaults), hint))
            continue
        expected = type(defaults[name])
        fits = type(value) is expected or (expected is float and type(value) is int)
        if defaults[name] is not None and not fits:
            problems.append(Problem(f"settings.{name}", repr(value), f"a {expected.__name__}"))
    settings = {**defaults, **config.settings}
    for name, allowed in choices.items():
        if settings[name] not in allowed:
            problems.append(Problem(f"settings.{name}", str(settings[name]), " | ".join(allowed)))
    for name, least in lowest.items():
        value = settings[name]
        if isinstance(value, int | float) and value < least:
            problems.append(Problem(f"settings.{name}", str(value), f"at least {least}"))
    return settings, problems


def _timestep_problems(config: TeacherConfig, num_timesteps: int | None) -> list[Problem]:
    if num_timesteps is None:
        if config.timesteps:
            hint = "Leave teacher.timesteps empty."
            return [Problem("timesteps", str(config.timesteps), "none for this teacher", hint)]
        return []
    return [
        Problem("timesteps", str(step), f"0..{num_timesteps - 1}", "Try --teacher.timesteps [50].")
        for step in config.timesteps
        if not 0 <= step < num_timesteps
    ]
