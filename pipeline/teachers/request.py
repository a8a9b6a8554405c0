"""Turn a request (`TeacherConfig`) into levels and settings; shared by the families."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.base import Scalar, TeacherConfig
from storage.schema import Level

NO_TIMESTEP = -1
"""`Level.timestep` of families that have none."""


def level_name(tap: str, *, timestep: int | None = None, draw: int = 0, pool: str = "none") -> str:
    """Spell a level's name from what it is: `up.1`, `up.1.t100`, `up.1.t100.d1.gap`."""
    name = tap if timestep is None else f"{tap}.t{timestep}"
    name = name if draw == 0 else f"{name}.d{draw}"
    return name if pool == "none" else f"{name}.{pool}"


def expand_levels(
    config: TeacherConfig,
    *,
    taps: Mapping[str, tuple[tuple[int, ...], int]],
    aliases: Mapping[str, str],
    num_timesteps: int | None,
    dtype: str = "float16",
    problems: Sequence[Problem] = (),
) -> tuple[Level, ...]:
    """Turn the request (levels x timesteps x draws) into levels; shared by the teachers.

    Args:
        config: the request.
        taps: tap name -> (shape per sample such as (C, H, W), stride in pixels).
        aliases: further names -> tap name (`s8` -> `up.1`).
        num_timesteps: diffusion steps of the model; None for a family without timesteps.
        dtype: of the records.
        problems: already found elsewhere in the request, to be reported with those found here.

    Raises:
        ConfigError: unknown or twice-requested levels (listing what exists), timesteps out of
        range,
            timesteps or draws where the family has none.
    """
    problems = [*problems, *_timestep_problems(config, num_timesteps)]
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
        raise ConfigError(problems)
    levels = []
    for tap in chosen:
        shape, stride = taps[tap]
        pool = config.pool if len(shape) == 3 else "none"
        for timestep in config.timesteps or [None]:
            for draw in range(config.draws):
                levels.append(
                    Level(
                        name=level_name(tap, timestep=timestep, draw=draw, pool=pool),
                        kind="feature" if len(shape) == 3 else "embedding",
                        tap=tap,
                        timestep=NO_TIMESTEP if timestep is None else timestep,
                        draw=draw,
                        pool=pool,
                        stride=stride,
                        shape=shape[:1] if pool == "gap" else shape,
                        dtype=dtype,
                    )
                )
    return tuple(levels)


def check_settings(
    config: TeacherConfig, defaults: Mapping[str, Scalar]
) -> tuple[dict[str, Scalar], list[Problem]]:
    """Fill `config.settings` up with a family's defaults; report unknown names and wrong types."""
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
    return {**defaults, **config.settings}, problems


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
