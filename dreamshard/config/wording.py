"""Word what is wrong with one setting: what was got, what is allowed, what to write instead."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from typing import Any

from dreamshard.config.types import (
    annotation_at,
    bare,
    describe,
    field_default,
    field_types,
    join,
    leaf_keys,
    limits,
    members,
    nested,
    range_text,
)
from dreamshard.errors import Problem

NOTHING = "nothing"
_MAX_KEYS_LISTED = 12
_MAX_SHOWN = 60
_RANGE_ERRORS = ("greater_", "less_", "multiple_", "too_short", "too_long", "string_too_")
_MISSING: Any = dataclasses.MISSING

Path = tuple[str | int, ...]


def word_error(cls: type, raw: dict[str, Any], path: Path, error: str, *, prefix: str) -> Problem:
    """Turn one error of pydantic into a problem.

    Args:
        cls: configuration dataclass.
        raw: the settings that were validated.
        path: keys and list positions that lead to the value.
        error: pydantic's type of error, such as "int_type".
        prefix: dotted key of this configuration within a larger one.
    """
    key = join(prefix, ".".join(map(str, path)))
    if error in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(cls, path, key, prefix)
    annotation = annotation_at(cls, path)
    value = _value_at(raw, path)
    if value is _MISSING:
        hint = f"It has no default: give --{key}, or set it in the file."
        return Problem(key, NOTHING, describe(annotation), hint)
    if error.startswith(_RANGE_ERRORS):
        allowed = range_text(annotation) or describe(annotation)
        return Problem(key, show(value), allowed, _range_hint(cls, path, key, annotation))
    return Problem(key, show(value), describe(annotation), _type_hint(annotation, value))


def show(value: Any) -> str:
    """Show a value as it would be written in the file, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _value_at(raw: Any, path: Path) -> Any:
    for part in path:
        if isinstance(raw, dict) and part not in raw:
            return _MISSING
        raw = raw[part]
    return raw


def _unknown_key(cls: type, path: Path, key: str, prefix: str) -> Problem:
    owner = nested(annotation_at(cls, path[:-1])) or cls
    known, name = list(field_types(owner)), str(path[-1])
    parent = key.rpartition(".")[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    places = [join(prefix, leaf) for leaf in leaf_keys(cls) if leaf.rpartition(".")[2] == name]
    if close:
        hint = f"Did you mean {join(parent, close[0])}?"
    else:
        hint = f"Did you mean {' or '.join(places[:3])}?" if places else ""
    short = len(known) <= _MAX_KEYS_LISTED
    allowed = ", ".join(known) if short else f"one of the {len(known)} settings in --help"
    return Problem(key, "an unknown key", allowed, hint)


def _range_hint(cls: type, path: Path, key: str, annotation: Any) -> str:
    """Propose the default, or a bound that is itself allowed."""
    default = _default_at(cls, path)
    if isinstance(default, (bool, int, float, str)):
        return f"Try --{key} {default}."
    bound = limits(annotation)
    near = bound.get("ge", bound.get("le"))
    return f"Try {near}." if near is not None else ""


def _default_at(cls: type, path: Sequence[str | int]) -> object:
    owner = cls if len(path) == 1 else nested(annotation_at(cls, path[:-1]))
    fields = {f.name: f for f in dataclasses.fields(owner)} if owner is not None else {}
    field = fields.get(str(path[-1]))
    return field_default(field) if field is not None else _MISSING


def _type_hint(annotation: Any, value: Any) -> str:
    """Say how to write what was probably meant."""
    kinds = [bare(member) for member in members(annotation)]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if str in kinds and isinstance(value, (int, float)):
        return f'In a file, quote it: "{show(value)}".'
    if int in kinds and is_number and value == value // 1:
        return f"Write {int(value)}."
    if isinstance(value, str) and (int in kinds or float in kinds) and _is_number(value):
        return f"Write it without quotes: {value}."
    if not isinstance(value, (list, dict, type(None))) and describe(annotation).startswith(
        "list of"
    ):
        return f"Write [{value}]."
    literals = [text for text in describe(annotation).split(" | ") if " | " in describe(annotation)]
    close = difflib.get_close_matches(str(value), literals, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
