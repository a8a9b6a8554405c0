"""Check a config from a file key by key: what is not known is refused, nothing is read past.

A table gives each key of a class a rule. A rule takes the value and returns None where it fits, or
the words for what would. Numbers are bounded, so that nothing absurd is ever built.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from dreamshard.errors import TeacherError

Rule = Callable[[Any], str | None]
"""Value -> None where it fits, else what is allowed."""
MAX_SHOWN = 80


def idle(_value: Any) -> None:
    """Accept anything: this key does not reach the features."""


def whole(low: int, high: int, *, none: bool = False) -> Rule:
    """Accept whole numbers of a range, and nothing where `none`."""

    def rule(value: Any) -> str | None:
        fits = (none and value is None) or (type(value) is int and low <= value <= high)
        return None if fits else f"a whole number of {low}..{high}{' or null' if none else ''}"

    return rule


def number(low: float, high: float, *, none: bool = False) -> Rule:
    """Accept finite numbers of a range, and nothing where `none`."""

    def rule(value: Any) -> str | None:
        plain = type(value) in (int, float) and math.isfinite(value)
        fits = (none and value is None) or (plain and low <= value <= high)
        return None if fits else f"a number of {low:g}..{high:g}{' or null' if none else ''}"

    return rule


def words(*allowed: object) -> Rule:
    """Accept these values alone; type and value count."""

    def rule(value: Any) -> str | None:
        fits = any(type(value) is type(each) and value == each for each in allowed)
        return None if fits else " | ".join("null" if a is None else str(a) for a in allowed)

    return rule


def flag(value: Any) -> str | None:
    """Accept true and false."""
    return None if type(value) is bool else "true | false"


def several(rule: Rule, *, most: int = 64, least: int = 1) -> Rule:
    """Accept a list of values that each fit."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            return f"a list of {least}..{most} entries"
        wrong = next((text for each in value if (text := rule(each)) is not None), None)
        return None if wrong is None else f"a list, each entry {wrong}"

    return check


def either(*rules: Rule) -> Rule:
    """Accept what fits any of some rules."""

    def check(value: Any) -> str | None:
        texts = [rule(value) for rule in rules]
        return None if None in texts else ", or ".join(text for text in texts if text)

    return check


def check(config: Mapping[str, Any], table: Mapping[str, Rule], *, where: str, what: str) -> None:
    """Refuse a config with a key that nobody reads, or a value that nothing here computes.

    Args:
        config: as the file has it; keys with a leading underscore are the library's own.
        table: key -> its rule.
        where: the file.
        what: the class, for messages.

    Raises: TeacherError naming the key, what it is and what is allowed.
    """
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in table:
            close = difflib.get_close_matches(key, table, n=1)
            hint = f"Did it mean {close[0]}?" if close else "Nothing here would read it."
            raise TeacherError(
                f"{where}: {key}: got {_shown(value)}, allowed the keys of {what}. {hint}"
            )
        allowed = table[key](value)
        if allowed is not None:
            raise TeacherError(
                f"{where}: {key}: got {_shown(value)}, allowed {allowed}. Such a {what} is not "
                "computed here: take a network without it."
            )


def _shown(value: Any) -> str:
    if type(value) is int and abs(value) > 1 << 64:  # Python refuses to print thousands of digits
        return "a number of very many digits"
    text = "null" if value is None else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
