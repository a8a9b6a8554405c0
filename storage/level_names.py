"""Find recorded levels by what people call them: name, tap, stride, stride or tap with a step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from dreamshard.errors import Problem
from storage.schema import Level

V = TypeVar("V")
_STRIDE = re.compile(r"s(\d+)")


def match_levels(levels: Sequence[Level], name: str) -> tuple[Level, ...]:
    """Return the levels that a name stands for, in their order; none where it stands for nothing.

    Args:
        levels: those there are.
        name: a level's own (`up.1.t100`), else a tap (`up.1`) or a stride in pixels (`s4`), which
            stand for all of their timesteps and draws; with a timestep (`s4.t100`), for that.
    """
    exact = tuple(level for level in levels if level.name == name)
    if exact:
        return exact
    head, mark, step = name.rpartition(".t")
    if not mark or not step.isdecimal():
        head, step = name, ""
    stride = _STRIDE.fullmatch(head)
    matching = tuple(level for level in levels if level.tap == head)
    if not matching and stride:
        matching = tuple(lv for lv in levels if lv.stride == int(stride[1]) and lv.stride)
    return tuple(level for level in matching if not step or level.timestep == int(step))


def choose_levels(
    levels: Sequence[Level], names: Sequence[str], *, key: str
) -> tuple[list[Level], list[Problem]]:
    """Return the levels that names stand for, each once in the order asked for, and what is wrong.

    Args:
        levels: those there are.
        names: as `match_levels` takes them.
        key: dotted key of the names, for messages.
    """
    chosen: dict[str, Level] = {}
    problems = []
    for name in names:
        matching = match_levels(levels, name)
        if not matching:
            problems.append(unknown_level(levels, name, key=key))
        chosen |= {level.name: level for level in matching}
    return list(chosen.values()), problems


def unknown_level(levels: Sequence[Level], name: str, *, key: str) -> Problem:
    """Say that a name stands for no level, and what the names are."""
    known = [level.name for level in levels]
    strides = [f"s{n}" for n in sorted({level.stride for level in levels if level.stride})]
    by_stride = f", or by stride {', '.join(strides)}" if strides else ""
    allowed = (", ".join(known) or "none: there is no level") + by_stride
    close = difflib.get_close_matches(name, [*known, *strides], n=1)
    return Problem(key, repr(name), allowed, f"Did you mean {close[0]}?" if close else "")


class ByLevel(dict[str, V]):
    """Hold one value per level by its name; a tap or stride finds it where it means one level.

    Args:
        values: by level name.
        levels: what they are of.
    """

    def __init__(self, values: Mapping[str, V], levels: Sequence[Level]) -> None:
        super().__init__(values)
        self._levels = tuple(level for level in levels if level.name in values)

    def __missing__(self, name: str) -> V:
        matching = match_levels(self._levels, name)
        if len(matching) == 1:
            return self[matching[0].name]
        names = ", ".join(level.name for level in matching or self._levels)
        wanted = "one of them" if matching else "a name or stride of one of them"
        raise KeyError(f"{name!r}: got {len(matching)} levels, allowed {wanted}: {names}")
