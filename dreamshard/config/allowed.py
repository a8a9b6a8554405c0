"""Say what settings are allowed, in words and by dotted key: pydantic's JSON schema of a class."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from docstring_parser import parse_from_object
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import WithDefaultSchema

Schema = dict[str, Any]
REQUIRED: Any = object()  # stands for the value of a setting that has none yet
NAMES = {"boolean": "true/false", "string": "text"}
LIMITS = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}"}
LIMITS |= {"exclusiveMaximum": "< {}", "multipleOf": "multiple of {}"}
LIMITS |= {f"min{what}": "at least {} long" for what in ("Items", "Length")}
LIMITS |= {f"max{what}": "at most {} long" for what in ("Items", "Length")}


class Setting(NamedTuple):
    """Hold one setting, or the heading of a nested configuration (then `hint` is None)."""

    key: str
    node: Schema
    value: Any
    doc: str
    hint: Any


class _WithFactories(GenerateJsonSchema):
    def get_default_value(self, schema: WithDefaultSchema) -> Any:
        make = schema.get("default_factory")
        return super().get_default_value(schema) if make is None else make()  # pyright: ignore


@functools.cache
def adapter(cls: type) -> TypeAdapter:
    """Return pydantic's checker of a list of one configuration, strictly."""
    # pydantic takes a config for a list and hands it down to plain dataclasses; for a dataclass
    # itself it wants an attribute on the class.
    listed: Any = list[cls]  # pyright: ignore[reportInvalidTypeForm] - made at run time
    return TypeAdapter(listed, config=ConfigDict(extra="forbid", strict=True))


@functools.cache
def schema_of(cls: type) -> Schema:
    """Return the JSON schema of a configuration, its references replaced by what they name."""
    whole = adapter(cls).json_schema(schema_generator=_WithFactories)

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            named = whole["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
            return {key: inline(item) for key, item in {**named, **node}.items() if key != "$ref"}
        return [inline(item) for item in node] if isinstance(node, list) else node

    return inline(whole["items"])


def parts(node: Schema) -> list[Schema]:
    """Return the alternatives of a union, or the schema alone."""
    return [part for one in node.get("anyOf", ()) for part in parts(one)] or [node]


def settings(node: Schema | None) -> dict[str, Schema] | None:
    """Return the settings of the one configuration that a schema is or may be; None if no such."""
    inside = [part["properties"] for part in parts(node or {}) if "properties" in part]
    return inside[0] if len(inside) == 1 else None


def nested(cls: type) -> dict[str, type]:
    """Return the class of each field that is, or may be, one configuration (`X`, `X | None`)."""
    classes = {}
    for name, hint in typing.get_type_hints(cls).items():
        kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        if settings(schema_of(cls)["properties"].get(name)) is not None:
            classes[name] = kinds[0]
    return classes


def defaults(node: Schema) -> dict[str, Any]:
    """Return a configuration's defaults as nested dicts; required fields are absent."""
    known = settings(node) or {}
    return {key: copy.deepcopy(one["default"]) for key, one in known.items() if "default" in one}


def walk(cls: type, values: dict[str, Any], prefix: str = "") -> Iterator[Setting]:
    """Yield a configuration's own settings, then each nested one's heading and settings.

    Of a nested configuration that is not there (null), the settings are those it would have.
    """
    hints, inner, nodes = typing.get_type_hints(cls), nested(cls), schema_of(cls)["properties"]
    docs = {p.arg_name: p for base in cls.__mro__[-2::-1] for p in parse_from_object(base).params}
    for name in sorted(nodes, key=lambda name: name in inner):
        key, value = f"{prefix}{name}", values.get(name, REQUIRED)
        doc = " ".join((docs[name].description or "").split() if name in docs else ())
        yield Setting(key, nodes[name], value, doc, None if name in inner else hints[name])
        if name in inner:
            inside = value if isinstance(value, dict) else defaults(nodes[name])
            yield from walk(inner[name], inside, f"{key}.")


def element(node: Schema, key: str | int = 0) -> Schema | None:
    """Return what a part of a union holds under a key or a position, None if nothing is known."""
    if isinstance(key, int):
        return dict(enumerate(node.get("prefixItems", ()))).get(key, node.get("items"))
    free = node.get("additionalProperties")
    return node.get("properties", {}).get(key, free if isinstance(free, dict) else None)


def at(node: Schema | None, path: Sequence[str | int]) -> Schema | None:
    """Return the schema found by following a path of keys, or None if there is none."""
    if node is None or not path:
        return node
    found = (at(element(part, path[0]), path[1:]) for part in parts(node))
    return next((child for child in found if child is not None), None)


def limits(node: Schema) -> dict[str, Any]:
    """Return the bounds of a schema and of the members of its union."""
    several = [part for part in parts(node) if "prefixItems" not in part]
    return {name: part[name] for name in LIMITS for part in several if name in part}


def range_text(node: Schema) -> str:
    """Return a schema's range in words ("0..999", "> 0, <= 1"), or "" if it has none."""
    bound = {name: _number(value) for name, value in limits(node).items()}
    if "minimum" in bound and "maximum" in bound:
        return f"{bound['minimum']}..{bound['maximum']}"
    inside = [element(part) or element(part, "") for part in parts(node)]
    each = [f"each {range_text(one)}" for one in inside if one and range_text(one)]
    return ", ".join([LIMITS[name].format(value) for name, value in bound.items()] or each)


def _number(value: Any) -> str:
    """Write a bound, large powers of two as such."""
    is_power = isinstance(value, int) and value > 1 << 20 and value & (value - 1) == 0
    return f"2^{value.bit_length() - 1}" if is_power else str(value)


def choices(node: Schema) -> list[str]:
    """Return the values of a Literal, in a union too."""
    several = [part.get("enum", [part["const"]] if "const" in part else []) for part in parts(node)]
    return [str(value) for values in several for value in values]


def describe(node: Schema) -> str:
    """Return in words what a schema allows ("integer 0..999", "full | block | none")."""
    if len(parts(node)) > 1:
        *first, last = map(describe, parts(node))
        return f"{', '.join(first)} or {last}"
    kind, pair = str(node.get("type", "anything")), node.get("prefixItems", [])
    if choices(node):
        return " | ".join(choices(node))
    if pair:
        return f"list of {len(pair)} ({', '.join(map(describe, pair))})"
    if kind == "object":
        named = f"mapping of names to {describe(element(node, '') or {})}"
        return "mapping of settings" if "properties" in node else named
    text = f"list of {describe(node['items'])}" if kind == "array" else NAMES.get(kind, kind)
    return f"{text} {range_text(node)}" if limits(node) else text
