"""Say what a configuration's annotations allow, in words and by dotted key."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

NAMES = {int: "integer", float: "number", bool: "true/false", str: "text", type(None): "null"}
LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length")


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return each field's annotation, `Annotated` metadata included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def field_default(field: dataclasses.Field) -> object:
    """Return a field's default value, or `dataclasses.MISSING` if it is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def bare(annotation: Any) -> Any:
    """Return an annotation without its `Annotated` metadata."""
    return (
        typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    )


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the annotation alone."""
    kind = bare(annotation)
    if typing.get_origin(kind) in (Union, types.UnionType):
        return tuple(m for part in typing.get_args(kind) for m in members(part))
    return (annotation,)


def nested(annotation: Any) -> type | None:
    """Return the one configuration dataclass of an annotation (`X` or `X | None`), else None."""
    found = [bare(m) for m in members(annotation) if dataclasses.is_dataclass(bare(m))]
    return found[0] if len(found) == 1 else None


def join(prefix: str, key: str) -> str:
    """Put a dotted prefix, possibly empty, before a key."""
    return f"{prefix}.{key}" if prefix else key


def leaf_keys(cls: type, prefix: str = "") -> list[str]:
    """Return the dotted key of every setting, nested ones included."""
    keys = []
    for name, annotation in field_types(cls).items():
        inner, key = nested(annotation), join(prefix, name)
        keys += leaf_keys(inner, key) if inner is not None else [key]
    return keys


def plain(value: object) -> object:
    """Return a value with dataclasses as dicts and tuples as lists, all of them copies."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def annotation_at(annotation: Any, path: Sequence[str | int]) -> Any | None:
    """Return the annotation found by following a path of keys, or None if there is none."""
    if not path:
        return annotation
    for member in members(annotation):
        kind, args = bare(member), typing.get_args(bare(member))
        child = None
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            child = field_types(kind).get(str(path[0]))
        elif typing.get_origin(kind) is dict:
            child = args[1]
        elif typing.get_origin(kind) is tuple and isinstance(path[0], int):
            child = args[min(path[0], len(args) - 1)]
            child = args[0] if child is Ellipsis else child
        elif typing.get_origin(kind) is list and isinstance(path[0], int):
            child = args[0]
        found = None if child is None else annotation_at(child, path[1:])
        if found is not None:
            return found
    return None


def limits(annotation: Any) -> dict[str, Any]:
    """Return the bounds declared on an annotation or on a member of its union."""
    found: dict[str, Any] = {}
    for part in dict.fromkeys((annotation, *members(annotation))):
        for item in typing.get_args(part)[1:] if typing.get_origin(part) is Annotated else ():
            for constraint in (item, *getattr(item, "metadata", ())):
                for name in LIMITS:
                    value = getattr(constraint, name, None)
                    if value is not None:
                        found[name] = value
    return found


def range_text(annotation: Any) -> str:
    """Return an annotation's range in words ("0..999", "> 0, <= 1"), or "" if it has none."""
    bound = limits(annotation)
    parts = []
    if "ge" in bound and "le" in bound:
        parts.append(f"{_number(bound['ge'])}..{_number(bound['le'])}")
    else:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        parts += [f"{sign} {_number(bound[name])}" for name, sign in signs.items() if name in bound]
    if "multiple_of" in bound:
        parts.append(f"multiple of {bound['multiple_of']}")
    if "min_length" in bound:
        parts.append(f"at least {bound['min_length']} long")
    if "max_length" in bound:
        parts.append(f"at most {bound['max_length']} long")
    if not parts:
        inner = [
            m for m in members(annotation) if typing.get_origin(bare(m)) in (list, tuple, dict)
        ]
        inside = [range_text(arg) for m in inner for arg in typing.get_args(bare(m))[-1:]]
        parts += [f"each {text}" for text in inside if text]
    return ", ".join(parts)


def _number(value: Any) -> str:
    """Write a bound, large powers of two as such."""
    is_power = isinstance(value, int) and value > 1 << 20 and value & (value - 1) == 0
    return f"2^{value.bit_length() - 1}" if is_power else str(value)


def describe(annotation: Any) -> str:
    """Return in words what an annotation allows ("integer 0..999", "full | block | none")."""
    alternatives = members(annotation)
    if len(alternatives) > 1:
        *first, last = (describe(part) for part in alternatives)
        return f"{', '.join(first)} or {last}"
    kind = bare(annotation)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        text = " | ".join(str(value) for value in args)
    elif origin is list or (origin is tuple and Ellipsis in args):
        text = f"list of {describe(args[0])}"
    elif origin is tuple:
        text = f"list of {len(args)} ({', '.join(describe(arg) for arg in args)})"
    elif origin is dict:
        text = f"mapping of names to {describe(args[1])}"
    elif dataclasses.is_dataclass(kind):
        text = "mapping of settings"
    else:
        text = NAMES.get(kind, getattr(kind, "__name__", str(kind)))
    own_range = range_text(annotation) if kind is not annotation else ""
    return f"{text} {own_range}" if own_range else text
