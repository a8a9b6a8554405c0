"""Validate merged settings as a whole: a configuration, or every problem at once."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dreamshard.config.types import field_types, join, nested
from dreamshard.config.wording import word_error
from dreamshard.errors import Problem

T = TypeVar("T")
_NOWHERE: Any = object()


@functools.cache
def _adapter(cls: type) -> TypeAdapter:
    # pydantic takes a config for a list and hands it down to plain dataclasses; for a dataclass
    # itself it wants an attribute on the class.
    listed: Any = list[cls]  # pyright: ignore[reportInvalidTypeForm] - made at run time
    return TypeAdapter(listed, config=ConfigDict(extra="forbid", strict=True))


def check(cls: type[T], raw: dict[str, Any], *, prefix: str = "") -> tuple[T | None, list[Problem]]:
    """Build a configuration from plain values, or name everything that is wrong with them.

    Args:
        cls: configuration dataclass.
        raw: merged settings, as `read_sources` returns them.
        prefix: dotted key of this configuration within a larger one.

    Returns:
        The configuration and no problems, or None and the problems. Nested configurations that are
        sound by themselves are asked for their `problems()` even if others are not.
    """
    try:
        # JSON is pydantic's strict input in which a list may become a tuple, a dict a dataclass.
        (config,) = _adapter(cls).validate_json(json.dumps([raw], default=str))
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        problems = ask(config, prefix=prefix)
        return (None if problems else config), problems
    problems = _collect(cls, raw, details, prefix)
    for name, annotation in field_types(cls).items():
        inner, value = nested(annotation), raw.get(name)
        if inner is not None and isinstance(value, dict):
            known = {problem.key for problem in problems}
            inside = check(inner, value, prefix=join(prefix, name))[1]
            problems += [problem for problem in inside if problem.key not in known]
    return None, problems


def ask(config: object, *, prefix: str = "") -> list[Problem]:
    """Collect what `problems()` of a configuration, and of every one inside it, has to say."""
    found: list[Problem] = []
    children: list[tuple[str, object]] = []
    if isinstance(config, (list, tuple)):
        children = [(str(number), item) for number, item in enumerate(config)]
    elif isinstance(config, dict):
        children = [(str(key), item) for key, item in config.items()]
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        own: Callable[[], list[Problem]] = getattr(config, "problems", list)
        found = [dataclasses.replace(one, key=join(prefix, one.key)) for one in own()]
        children = [(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)]
    for name, child in children:
        found += ask(child, prefix=join(prefix, name))
    return found


def _collect(
    cls: type, raw: dict[str, Any], details: list[ErrorDetails], prefix: str
) -> list[Problem]:
    problems: dict[tuple[str | int, ...], Problem] = {}
    for detail in details:
        path = _path(raw, detail)
        if path not in problems:  # a union reports once per member; one problem is enough
            problems[path] = word_error(cls, raw, path, detail["type"], prefix=prefix)
    return list(problems.values())


def _path(raw: Any, detail: ErrorDetails) -> tuple[str | int, ...]:
    """Turn pydantic's location into a path of keys, without its names of union members."""
    node, path = raw, []
    for part in detail["loc"][1:]:
        child = _child(node, part)
        is_missing_key = detail["type"] == "missing" and isinstance(node, dict)
        if child is not _NOWHERE:
            node = child
            path.append(part)
        elif is_missing_key and part == detail["loc"][-1]:
            path.append(part)
    return tuple(path)


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(part, _NOWHERE)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return _NOWHERE
