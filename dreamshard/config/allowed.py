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
    """Hold one setting, or the heading of a nested configuration."""

    key: str
    node: Schema
    value: Any
    doc: str
    is_heading: bool


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
    return TypeAdapter(listed, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


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


def parts(node: Schema | None) -> list[Schema]:
    """Return the alternatives of a union, or the schema alone."""
    return [part for one in (node or {}).get("anyOf", ()) for part in parts(one)] or [node or {}]


def settings(node: Schema | None) -> dict[str, Schema] | None:
    """Return the settings of the one configuration that a schema is or may be; None if no such."""
    inside = [part["properties"] for part in parts(node) if "properties" in part]
    return inside[0] if len(inside) == 1 else None


def nested(cls: type) -> dict[str, type]:
    """Return the class of each field that is, or may be, one configuration (`X`, `X | None`)."""
    hints, nodes = typing.get_type_hints(cls), schema_of(cls)["properties"]
    several = {name: (hints[name], *typing.get_args(hints[name])) for name in nodes}
    names = [name for name, node in nodes.items() if settings(node) is not None]
    return {name: next(filter(dataclasses.is_dataclass, several[name])) for name in names}


def defaults(node: Schema | None) -> dict[str, Any]:
    """Return a configuration's defaults as nested dicts; required fields are absent."""
    known = settings(node) or {}
    return {key: copy.deepcopy(one["default"]) for key, one in known.items() if "default" in one}


def walk(cls: type, values: dict[str, Any], prefix: str = "") -> Iterator[Setting]:
    """Yield a configuration's own settings, then each nested one's heading and settings.

    Of a nested configuration that is not there (null), the settings are those it would have.
    """
    inner, nodes = nested(cls), schema_of(cls)["properties"]
    docs = {p.arg_name: p for base in cls.__mro__[-2::-1] for p in parse_from_object(base).params}
    for name in sorted(nodes, key=lambda name: name in inner):
        key, value = f"{prefix}{name}", values.get(name, REQUIRED)
        doc = " ".join((docs[name].description or "").split() if name in docs else ())
        yield Setting(key, nodes[name], value, doc, name in inner)
        if name in inner:
            inside = value if isinstance(value, dict) else defaults(nodes[name])
            yield from walk(inner[name], inside, f"{key}.")


def at(node: Schema | None, path: Sequence[str | int]) -> Schema | None:
    """Return the schema found by following a path of keys, or None if there is none."""
    for key in path:
        node = next(filter(None, (_inside(part, key) for part in parts(node))), None)
    return node


def _inside(part: Schema, key: str | int) -> Schema | None:
    if isinstance(key, int):
        return dict(enumerate(part.get("prefixItems", ()))).get(key, part.get("items"))
    free = part.get("additionalProperties")
    return part.get("properties", {}).get(key, free if isinstance(free, dict) else None)


def choices(node: Schema) -> list[str]:
    """Return the values of a Literal, in a union too."""
    several = [part.get("enum", [part["const"]] if "const" in part else []) for part in parts(node)]
    return [str(value) for values in several for value in values]


def describe(node: Schema | None) -> str:
    """Return in words what a schema allows ("integer 0..999", "full | block | none")."""
    *first, last = parts(node)
    if first:
        return f"{', '.join(map(describe, first))} or {describe(last)}"
    if choices(last):
        return " | ".join(choices(last))
    if several := last.get("prefixItems"):
        return f"list of {len(several)} ({', '.join(map(describe, several))})"
    kind = str(last.get("type", "anything"))
    bound = {name: _number(last[name]) for name in LIMITS if name in last}
    limits = [LIMITS[name].format(value) for name, value in bound.items()]
    if "minimum" in bound and "maximum" in bound:
        limits = [f"{bound['minimum']}..{bound['maximum']}"]
    if kind == "string" and bound.get("minLength") == "1":
        limits[0] = "not empty"
    if kind == "array":
        kind = f"list of {describe(last['items'])}" + "," * bool(limits)
    elif kind == "object":
        named = f"mapping of names to {describe(_inside(last, ''))}"
        kind = "mapping of settings" if "properties" in last else named
    return f"{NAMES.get(kind, kind)} {', '.join(limits)}".strip()


def _number(value: Any) -> str:
    """Write a bound, large powers of two as such."""
    is_power = isinstance(value, int) and value > 1 << 20 and value & (value - 1) == 0
    return f"2^{value.bit_length() - 1}" if is_power else str(value)
