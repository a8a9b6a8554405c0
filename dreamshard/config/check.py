"""Validate merged settings as a whole: a configuration, or every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dreamshard.config.allowed import (
    Schema,
    adapter,
    at,
    choices,
    describe,
    nested,
    parts,
    schema_of,
    settings,
    walk,
)
from dreamshard.config.reads import default_of, rules_of, unread
from dreamshard.errors import Problem
from dreamshard.owner.home import expanded
from dreamshard.owner.urls import COPY_LATER, LOCAL, mended_url

T = TypeVar("T")
Path = tuple[str | int, ...]
NOTHING = "nothing"
MAX_KEYS_LISTED = 12
MAX_SHOWN = 60
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
WRITTEN = ("run_dir", "out")
"""Settings whose folders are this machine's: what is written there is added to and renamed."""
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
    raw = _at_home(raw)
    try:
        # JSON is pydantic's strict input in which a list may become a tuple, a dict a dataclass.
        (config,) = adapter(cls).validate_json(json.dumps([raw], default=str))
    except ValidationError as error:
        problems = [_word(cls, _path(raw, one), one) for one in error.errors(include_url=False)]
    else:
        problems = list(_ask(config))
        return (None if problems else config), problems
    for name, inner in nested(cls).items():
        if isinstance(raw.get(name), dict):
            problems += [problem.under(name) for problem in check(inner, raw[name])[1]]
    # A union reports once per member, and what is nested twice; the first is enough.
    return None, list({problem.key: problem for problem in reversed(problems)}.values())[::-1]


def _unreadable(value: Any, key: str = "") -> Iterator[Problem]:
    """Yield the texts that are not UTF-8, as names of older systems may be, and URLs that are torn
    or where a folder is written: as a path, `s3://b` is a folder called `s3:` in the working one.
    """
    inside = value.items() if isinstance(value, dict) else ()
    for name, item in enumerate(value) if isinstance(value, list | tuple) else inside:
        yield from _unreadable(item, f"{key}.{name}".lstrip("."))
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        hint = "Rename the file or folder, or reach it by a link with such a name."
        yield Problem(key, ascii(value), "a name that is UTF-8", hint)
    elif isinstance(value, str) and (meant := mended_url(value)):
        yield Problem(key, value, "a path, or a URL with two slashes", f"Did you mean {meant}?")
    elif isinstance(value, str) and key in WRITTEN and "://" in value:
        yield Problem(key, value, LOCAL, COPY_LATER)


def _at_home(value: Any) -> Any:
    """Return values with `~/` at the head of a text replaced: no shell does so in a file."""
    if isinstance(value, dict):
        return {name: _at_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~/") else value


def _ask(config: object, default: object = None) -> Iterator[Problem]:
    """Yield what `problems()` of a configuration, and of every one inside it, has to say.

    So too of settings that are not read; `default` is what is there where nothing is given.
    """
    children: dict[Any, object] = config if isinstance(config, dict) else {}
    if isinstance(config, (list, tuple)):
        children = dict(enumerate(config))
    elif dataclasses.is_dataclass(config):
        if type(default) is not type(config):
            default = default_of(type(config))
        yield from (problems := list(getattr(config, "problems", list)()))
        known = {problem.key for problem in problems}
        if rules_of(type(config)):
            yield from (one for one in unread(config, default) if one.key not in known)
        children = vars(config)
    for name, child in children.items():
        for problem in _ask(child, getattr(default, str(name), None)):
            yield problem.under(name)


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
    key, error = ".".join(map(str, path)), detail["type"]
    if error in UNKNOWN:
        return _unknown_key(cls, path, key)
    node = at(schema_of(cls), path) or {}
    if error == "missing" and path[-1] == detail["loc"][-1]:
        hint = f"It has no default: give --{key}, or set it in the file."
        return Problem(key, NOTHING, describe(node), hint)
    got = json.dumps(detail["input"], ensure_ascii=False, default=str)
    got = got if len(got) <= MAX_SHOWN else got[: MAX_SHOWN - 3] + "..."
    allowed, value = describe(node), detail["input"]
    if isinstance(value, float) and not math.isfinite(value):
        allowed = f"{allowed}; a number is finite"
    elif not error.startswith(RANGE_ERRORS):
        return Problem(key, got, describe(node), _type_hint(node, detail["input"], got))
    limits = detail.get("ctx", {})
    near = limits.get("ge", limits.get("le"))
    hint = "" if near is None else f"Try {near}."
    if isinstance(node.get("default"), (bool, int, float, str)):
        hint = f"Try --{key} {node['default']}."
    return Problem(key, got, allowed, hint)


def _unknown_key(cls: type, path: Path, key: str) -> Problem:
    known, name = list(settings(at(schema_of(cls), path[:-1])) or {}), str(path[-1])
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    places = [f"{key.removesuffix(name)}{close[0]}"] if close else []
    if not close:
        leaves = [setting.key for setting in walk(cls, {}) if not setting.is_heading]
        places = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
    hint = f"Did you mean {' or '.join(places[:3])}?" if places else ""
    several = f"one of the {len(known)} settings in --help all"
    listed = ", ".join(known) if len(known) <= MAX_KEYS_LISTED else several
    return Problem(key, "an unknown key", listed, hint)


def _type_hint(node: Schema, value: Any, got: str) -> str:
    """Say how to write what was probably meant."""
    several = parts(node)
    kinds = {part.get("type") for part in several if not choices(part)}
    if "string" in kinds and isinstance(value, (int, float)):
        return f'In a file, quote it: "{got}".'
    if "integer" in kinds and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    if kinds & {"integer", "number"} and _is_number(value):
        return f"Write it without quotes: {value}."
    if several[0].get("type") == "array" and isinstance(value, (str, int, float)):
        return f"Write [{value}]."
    close = difflib.get_close_matches(str(value), choices(node), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _is_number(value: Any) -> bool:
    try:
        # float() also takes the digits of other scripts, which YAML has as text.
        return isinstance(value, str) and value.isascii() and math.isfinite(float(value))
    except ValueError:
        return False
