"""Validate merged settings as a whole: a configuration, or every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dreamshard.config import allowed
from dreamshard.config.allowed import Schema
from dreamshard.config.reads import Unread, default_of, rules_of, unread
from dreamshard.errors import Problem

T = TypeVar("T")
Path = tuple[str | int, ...]
NOTHING = "nothing"
MAX_KEYS_LISTED = 12
MAX_SHOWN = 60
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
RANGE_ERRORS = ("greater_", "less_", "multiple_", "too_short", "too_long", "string_too_")


def check(cls: type[T], raw: dict[str, Any]) -> tuple[T | None, list[Problem]]:
    """Build a configuration from plain values, or name everything that is wrong with them.

    Args:
        cls: configuration dataclass.
        raw: merged settings, as `read_sources` returns them.

    Returns:
        The configuration and no problems, or None and the problems. Nested configurations that are
        sound by themselves are asked for their `problems()` even if others are not.
    """
    if problems := list(_unreadable(raw)):
        return None, problems
    try:
        # JSON is pydantic's strict input in which a list may become a tuple, a dict a dataclass.
        (config,) = allowed.adapter(cls).validate_json(json.dumps([raw], default=str))
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        problems = list(_ask(config))
        return (None if problems else config), problems
    found: dict[str, Problem] = {}
    for detail in details:  # a union reports once per member; one problem is enough
        problem = _word(cls, _path(raw, detail), detail)
        found.setdefault(problem.key, problem)
    for name, inner in allowed.nested(cls).items():
        for problem in check(inner, raw[name])[1] if isinstance(raw.get(name), dict) else ():
            key = f"{name}.{problem.key}"
            found.setdefault(key, dataclasses.replace(problem, key=key))
    return None, list(found.values())


def _unreadable(value: Any, key: str = "") -> Iterator[Problem]:
    """Yield the texts that are not UTF-8, as names of files from an older system may be."""
    inside = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        inside = enumerate(value)
    for name, item in inside:
        yield from _unreadable(item, f"{key}.{name}".lstrip("."))
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        hint = "Rename the file or folder, or reach it by a link with such a name."
        yield Problem(key, ascii(value), "a name that is UTF-8", hint)


def _ask(config: object, prefix: str = "", default: object = None) -> Iterator[Problem]:
    """Yield what `problems()` of a configuration, and of every one inside it, has to say.

    So too of settings that are not read; `default` is what is there where nothing is given.
    """
    children: dict[Any, object] = config if isinstance(config, dict) else {}
    if isinstance(config, (list, tuple)):
        children = dict(enumerate(config))
    elif dataclasses.is_dataclass(config):
        if type(default) is not type(config):
            default = default_of(type(config))
        found = list(getattr(config, "problems", list)())
        known = {problem.key for problem in found}
        if rules_of(type(config)):
            found += [problem for problem in unread(config, default) if problem.key not in known]
        for problem in found:
            if isinstance(problem, Unread):
                choice = prefix + problem.choice
                problem = dataclasses.replace(problem, choice=choice)
            yield dataclasses.replace(problem, key=prefix + problem.key)
        children = vars(config)
    for name, child in children.items():
        inside = getattr(default, str(name), None)
        yield from _ask(child, f"{prefix}{name}.", inside)


def _path(raw: Any, detail: ErrorDetails) -> Path:
    """Turn pydantic's location into a path of keys, without its names of union members."""
    node, path, last = raw, [], detail["loc"][-1]
    for part in detail["loc"][1:]:
        is_missing = detail["type"] == "missing" and part == last and isinstance(node, dict)
        inside: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(inside, dict) and (part in inside or is_missing):
            node = inside.get(part)
            path.append(part)
    return tuple(path)


def _word(cls: type, path: Path, detail: ErrorDetails) -> Problem:
    """Say of one error of pydantic's what was got, what is allowed, what to write instead."""
    key, value, error = ".".join(map(str, path)), detail["input"], detail["type"]
    if error in UNKNOWN:
        return _unknown_key(cls, path, key)
    node = allowed.at(allowed.schema_of(cls), path) or {}
    if error == "missing" and path[-1] == detail["loc"][-1]:
        hint = f"It has no default: give --{key}, or set it in the file."
        return Problem(key, NOTHING, allowed.describe(node), hint)
    got = json.dumps(value, ensure_ascii=False, default=str)
    got = got if len(got) <= MAX_SHOWN else got[: MAX_SHOWN - 3] + "..."
    if not error.startswith(RANGE_ERRORS):
        return Problem(key, got, allowed.describe(node), _type_hint(node, value, got))
    bound = allowed.limits(node)
    near = bound.get("minimum", bound.get("maximum"))
    hint = "" if near is None else f"Try {near}."
    if isinstance(node.get("default"), (bool, int, float, str)):
        hint = f"Try --{key} {node['default']}."
    return Problem(key, got, allowed.range_text(node) or allowed.describe(node), hint)


def _unknown_key(cls: type, path: Path, key: str) -> Problem:
    owner = allowed.at(allowed.schema_of(cls), path[:-1])
    known, (parent, _, name) = list(allowed.settings(owner) or {}), key.rpartition(".")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    places = [f"{parent}.{close[0]}".lstrip(".")] if close else []
    if not close:
        leaves = [setting.key for setting in allowed.walk(cls, {}) if setting.hint is not None]
        places = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
    hint = f"Did you mean {' or '.join(places[:3])}?" if places else ""
    several = f"one of the {len(known)} settings in --help all"
    listed = ", ".join(known) if len(known) <= MAX_KEYS_LISTED else several
    return Problem(key, "an unknown key", listed, hint)


def _type_hint(node: Schema, value: Any, got: str) -> str:
    """Say how to write what was probably meant."""
    several = allowed.parts(node)
    kinds = {part.get("type") for part in several if not allowed.choices(part)}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if "string" in kinds and isinstance(value, (int, float)):
        return f'In a file, quote it: "{got}".'
    if "integer" in kinds and is_number and value == value // 1:
        return f"Write {int(value)}."
    if kinds & {"integer", "number"} and _is_number(value):
        return f"Write it without quotes: {value}."
    if several[0].get("type") == "array" and isinstance(value, (str, int, float)):
        return f"Write [{value}]."
    close = difflib.get_close_matches(str(value), allowed.choices(node), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(float(value), float)
    except ValueError:
        return False
