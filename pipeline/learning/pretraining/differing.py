"""Name what a run is asked for otherwise than what is there was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dreamshard.errors import Problem

AT_MOST = 5
"""Settings that are named of those that differ (count)."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings under dotted keys."""
    for name, item in settings.items():
        if isinstance(item, dict):
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def problems(
    now: Mapping[str, Any], then: Mapping[str, Any], *, where: object, hint: str
) -> list[Problem]:
    """List the settings that differ, the first few.

    Args:
        now: settings asked for, by dotted key.
        then: those of what is there; a key that one of the two lacks differs from None.
        where: names what is there.
        hint: the ways out.
    """
    return [
        Problem(key, repr(now.get(key)), f"{then.get(key)!r}, as in {where}", hint)
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ][:AT_MOST]
